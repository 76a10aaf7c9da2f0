"""The adapter that makes sandboxes; the only importer of docker."""
