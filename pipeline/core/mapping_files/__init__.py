"""From a mapping file's YAML to a mapping, and every rule about it."""
