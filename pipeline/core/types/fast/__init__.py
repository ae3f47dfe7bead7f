"""Fast decoding by type: how values look in an export's line, and how they become COPY fields without parsing."""
