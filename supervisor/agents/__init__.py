"""An agent is one Markdown file here; this package holds no code."""
