"""The programs inside the container: synchronous, they import `sandbox.contract` only."""
