"""From the lines of an export's files to rows and changes."""
