"""What the planes say to each other: pydantic and the standard library, pure; no input or output."""
