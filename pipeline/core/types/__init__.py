"""The SQL types a column may have, a file each: all that is said of a type stands in its codec.

`codec` is the contract, `fast_form` what fast decoding may know of a type. `pipeline.core.types.sql_types` lists them.
"""
