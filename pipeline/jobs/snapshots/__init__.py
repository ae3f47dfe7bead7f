"""Snapshots of a DynamoDB table: exports requested, resumed or accepted, and scans."""
