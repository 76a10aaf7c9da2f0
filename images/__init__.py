"""Recipes of the images and the set-up script, as package data; who builds them is `sandbox/runtime/images.py`."""
