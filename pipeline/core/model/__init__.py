"""The values that everything else works on: attribute values, mappings, changes. Valid by construction."""
