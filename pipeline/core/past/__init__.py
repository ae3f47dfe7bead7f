"""What is known of a table's past: whether each change arrived, is on its way, or was lost."""
