"""What everything else is about: attribute values, mappings, changes. Plain values, valid by construction."""
