"""A small HTTP API that keeps short notes in memory."""
