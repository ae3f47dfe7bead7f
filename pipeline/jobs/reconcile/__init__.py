"""Reconcile: the replica proven equal to a snapshot, and repaired."""
