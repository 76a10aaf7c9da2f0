"""Runs the commands of a checks job and leaves their reports in `/out`."""
