"""Sessions with the database: where it is, how they are opened, what stands between."""
