"""The fast path for a full export's lines. In any doubt, a line takes the general path."""
