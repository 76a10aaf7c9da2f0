"""Trees in and out of a sandbox: provision, seal, quota; nothing here runs porcelain git."""
