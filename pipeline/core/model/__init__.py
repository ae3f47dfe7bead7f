"""What everything else speaks of: attribute values, mappings, changes. Plain values, valid by construction."""
