"""The event log, which is the truth, and who may write it."""
