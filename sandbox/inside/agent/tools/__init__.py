"""The tools of the built-in agent, one module each."""
