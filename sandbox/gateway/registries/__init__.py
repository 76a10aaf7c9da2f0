"""Package indexes of the executor's host, offered to a sandbox: project by project, file by file (docs/packages.md)."""
