"""One file for each verb: what a person or a schedule asks for."""
