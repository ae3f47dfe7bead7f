"""Tables and views: what is there, what the mappings ask for, and the way from one to the other."""
