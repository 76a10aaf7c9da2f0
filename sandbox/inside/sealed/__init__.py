"""Tests in one process, the product they test in another: what runs inside the *user's* Python, standard library only.

The runner of checks puts this package on a check's path as `andon_sealed`; it is not part of the program in the container
(`sandbox/inside/checks`), which only prepares it. Nothing here decides a verdict: the reports do (`supervisor/gates`).
"""
