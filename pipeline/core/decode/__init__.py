"""From an item to the rows of its targets."""
