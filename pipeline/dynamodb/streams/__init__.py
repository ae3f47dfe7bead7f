"""A table's stream: its shards, its records, and the functions that read it."""
