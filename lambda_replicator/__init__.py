"""The Lambda on a table's stream."""
