"""Counts the lines of a block.

Invariant: a block consists of whole lines, each with its line end.
"""

from __future__ import annotations


def count_lines(block: bytes) -> int:
    """Return how many lines a block holds.

    CPython's `replace` finds a byte with `memchr`, while `count` loops over every byte and takes several times as long
    (`Objects/stringlib/transmogrify.h`, `fastsearch.h`); and this runs over every byte of an export.
    """
    return len(block) - len(block.replace(b"\n", b""))
