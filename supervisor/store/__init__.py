"""The event log, the history made from it, and the broker that keeps both."""
