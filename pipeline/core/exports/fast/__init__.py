"""The fast way through a full export's lines. What it is not sure of goes the general way."""
