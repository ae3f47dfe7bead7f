"""Catch up: what was written in a range of the past."""
