"""What goes into a task bundle."""
