"""Pause Python's garbage collection of cycles while many objects are made that have none.

A block of an export or a batch of a stream is decoded into many small objects without reference cycles. Python frees
them when nobody refers to them any more. To search them for cycles would cost more time than it frees memory.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

# New objects, less those freed, before a search: more than the JSON of a batch of 1,000 records is made of.
_RARELY = 50_000


@contextmanager
def collection_paused() -> Generator[None]:
    """Pause the search in this process. Long work calls `collect_young` from time to time."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def collect_young() -> None:
    """While the search is paused, search the objects made since the last search; older ones are not searched."""
    if not gc.isenabled():
        gc.collect(0)


def collect_rarely() -> None:
    """Search new objects, and only rarely: for a process that serves events for hours.

    Objects that exist now, mostly modules, are never searched again.
    """
    gc.freeze()
    gc.set_threshold(_RARELY)
