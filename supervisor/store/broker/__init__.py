"""The broker itself: its configuration, who may connect, its certificates, and the embedded server's process."""
