"""Schema `replication`: what is recorded of each kind of work, a file a subject."""
