"""What fast decoding may know of a type: how its values stand in a line, and how they become COPY fields unparsed."""
