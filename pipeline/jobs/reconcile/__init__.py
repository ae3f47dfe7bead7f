"""Reconcile: prove that the replica equals a snapshot, and repair it."""
