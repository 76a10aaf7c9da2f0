"""The history in SQL: a copy of the event log that may be thrown away."""
