"""Schema `replication`: the records of each kind of work, one file for each subject."""
