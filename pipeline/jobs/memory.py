"""Python's search for cycles, paused where objects come by the hundred thousand and have none.

A block of an export or a batch of a stream is decoded into many small objects that refer to each other in no circle:
they go when nobody refers to them any more. Looking for circles among them would cost more than they do.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager

# New objects, less those that went, before a search: more than the JSON of a batch of 1,000 records is made of.
_RARELY = 50_000


@contextmanager
def collection_paused() -> Generator[None]:
    """Pause the search in this process. What takes long calls `collect_young` now and then."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def collect_young() -> None:
    """Search among what was made since the last search, while it is paused; what is older is not looked through."""
    if not gc.isenabled():
        gc.collect(0)


def collect_rarely() -> None:
    """Search among what this process makes from now on, and rarely: for one that is to serve events for hours.

    What is there already, modules for the most part, stays for good and is never looked through again.
    """
    gc.freeze()
    gc.set_threshold(_RARELY)
