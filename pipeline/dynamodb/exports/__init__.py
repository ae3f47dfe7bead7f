"""Exports to S3: requesting, finding, checking and reading them."""
