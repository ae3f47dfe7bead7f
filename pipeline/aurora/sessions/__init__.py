"""Sessions with the database: its address, how they are opened, and poolers in between."""
