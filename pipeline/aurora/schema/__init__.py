"""Tables and views: what exists, what the mappings ask for, and the steps between the two."""
