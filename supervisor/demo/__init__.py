"""The sample repository and its cassette, as package data."""
