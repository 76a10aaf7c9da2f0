"""The release both planes say they are; `pyproject.toml` says the same, and a test compares the two."""

RELEASE = "0.1.0"
