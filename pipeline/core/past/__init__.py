"""A table's past: whether each change arrived, is on its way, or was lost."""
