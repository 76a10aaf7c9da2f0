"""Agents that are not ours: programs a person put into the image, run behind the same walls as our own loop."""
