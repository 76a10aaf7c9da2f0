"""The daemon on a host: pulls jobs, runs each attempt in a throwaway container, gives results back."""
