"""The event log behind a protocol, and who is there."""
