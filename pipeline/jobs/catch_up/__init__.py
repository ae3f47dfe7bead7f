"""Catch up: apply what was written in a range of the past."""
