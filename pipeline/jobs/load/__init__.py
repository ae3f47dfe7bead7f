"""Load: a snapshot into a table's targets."""
