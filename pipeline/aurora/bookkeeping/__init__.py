"""Schema `replication`: what is recorded about each kind of work, one file for each subject."""
