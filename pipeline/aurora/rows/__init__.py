"""Writes rows under the ordering rule."""
