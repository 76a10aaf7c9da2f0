"""The data plane: all an executor host or a container needs; it never imports `supervisor`."""
