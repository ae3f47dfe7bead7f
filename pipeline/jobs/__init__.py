"""One verb a file: what a person or a schedule asks for."""
