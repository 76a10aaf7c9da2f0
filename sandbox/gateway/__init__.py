"""The only way out of a sandbox: one unix socket per attempt; the key never leaves this side."""
