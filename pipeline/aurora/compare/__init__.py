"""Compares the replica with a snapshot."""
