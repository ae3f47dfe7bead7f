"""The document of a failed batch without the records of one item.

Invariant: the other records stay as they are, and the document says how many there are, so that it can be redriven.
"""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from pipeline.core.streams.failed_batches import inflated, parse_failed_batch

if TYPE_CHECKING:
    from collections.abc import Callable


class Remaining(NamedTuple):
    """What is left of a document."""

    content: bytes
    removed: int
    records: int
    nameless: int = 0
    """How many of those that are left name no key, so that nobody knows whose they are."""


def without_item(content: bytes, table: str, is_theirs: Callable[[dict[str, Any]], bool | None]) -> Remaining | None:
    """Remove the item's records; None if the batch is of another table, or has none.

    `is_theirs` returns None for a record that names no key: it stays. Raises TerminalError if the document cannot be
    read.
    """
    if _is_emptied(content):
        return Remaining(content, 0, 0)
    batch = parse_failed_batch(content)
    if batch.table != table or batch.records is None:
        return None
    whose = [(record, is_theirs(cast("dict[str, Any]", record))) for record in batch.records]
    kept = [record for record, theirs in whose if not theirs]
    nameless = sum(theirs is None for _, theirs in whose)
    removed = len(batch.records) - len(kept)
    if not removed:
        return Remaining(content, 0, len(kept), nameless)
    document: dict[str, Any] = json.loads(inflated(content))
    payload = json.loads(document["payload"])
    payload["Records"] = kept
    document["payload"] = json.dumps(payload, separators=(",", ":"))
    document["DDBStreamBatchInfo"]["batchSize"] = len(kept)
    text = json.dumps(document, separators=(",", ":")).encode()
    return Remaining(gzip.compress(text) if content.startswith(b"\x1f\x8b") else text, removed, len(kept), nameless)


def _is_emptied(content: bytes) -> bool:
    """Whether an earlier run removed all records of a document."""
    try:
        return json.loads(inflated(content))["DDBStreamBatchInfo"]["batchSize"] == 0
    except (KeyError, TypeError, ValueError, RecursionError):
        return False
