"""From a sample of items to the draft of a mapping file."""
