"""Probe: how far replication is, and which changes were lost."""
