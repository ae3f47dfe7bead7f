"""Python's search for cycles, paused where objects come by the hundred thousand and have none.

A block of an export or a batch of a stream is decoded into many small objects that refer to each other in no circle:
they go when nobody refers to them any more. Looking for circles among them would cost more than they do.
"""

from __future__ import annotations

import gc
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def collection_paused() -> Generator[None]:
    """Pause the search in this process. What takes long calls `gc.collect` now and then."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()
