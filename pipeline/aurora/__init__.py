"""The target: connection, tables and views, apply, load, bookkeeping, compare."""
