"""Rules that turn evidence into a verdict; they read reports and trees, never self-reports."""
