"""Keeps DynamoDB tables readable as typed Aurora PostgreSQL tables."""
