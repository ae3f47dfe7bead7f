"""Exports to S3: requested, found, checked, read."""
