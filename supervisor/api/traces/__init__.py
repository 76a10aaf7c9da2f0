"""A run's trace: its spans from events, the files they are kept in, how they are read and drawn, and their way to a collector."""
