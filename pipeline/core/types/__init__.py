"""The SQL types that a column may have, one file each: a type's codec contains everything about it.

`codec` is the contract, `fast_form` tells fast decoding about a type, and `pipeline.core.types.sql_types` lists them.
"""
