"""The composition root: the one place that knows every real part; what a CLI or a supervisor process is made of.

Nothing is imported here: a command that only asks a supervisor something should not wait for what a supervisor is made of.
"""
