"""The built-in agent: our own loop over the Messages API."""
