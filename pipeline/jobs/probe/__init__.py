"""Probe: how far replication is, and what was lost."""
