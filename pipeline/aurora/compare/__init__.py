"""Comparing the replica with a snapshot."""
