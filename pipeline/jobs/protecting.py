"""Where items of the source come in: each of these returns them as they may be stored.

Invariant: a job reads items, or lines of an export, only through here or through `Replicator`, so that nothing behind
it ever has a protected value. A mapping that protects nothing costs nothing.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from pipeline.core.decode.protect import Protector
from pipeline.core.errors import ConfigurationError
from pipeline.core.exports.protected_lines import FullProtector, protected_incremental
from pipeline.dynamodb.items import read_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping
    from pipeline.dynamodb.exports.manifest import ExportManifest
    from pipeline.dynamodb.items import ItemRead
    from pipeline.jobs.export_file import Protect
    from pipeline.jobs.services import Services


def read_again(services: Services, mapping: TableMapping, keys: Sequence[Item]) -> Iterator[ItemRead]:
    """Read items by key, consistently, as `read_items`; protected."""
    reads = read_items(services.dynamodb, mapping.table, keys, services.clock)
    if not mapping.protects:
        return reads
    protector = Protector(mapping)
    return (replace(read, item=None if read.item is None else protector.item(read.item)) for read in reads)


def protect_full(mapping: TableMapping, *, protected: bool) -> Protect | None:
    """Return what protects a block of a full export's lines; None if there is nothing to do."""
    return FullProtector(Protector(mapping)) if mapping.protects and not protected else None


def protect_incremental(mapping: TableMapping) -> Protect | None:
    """Return what protects a block of an incremental export's lines; None if there is nothing to do."""
    return partial(protected_incremental, protector=Protector(mapping)) if mapping.protects else None


def is_protected(mapping: TableMapping, manifest: ExportManifest) -> bool:
    """Whether a snapshot's files are protected already. Raises ConfigurationError if that was done in another way."""
    if manifest.protection not in {"", mapping.protection}:
        raise ConfigurationError(
            f"reading {manifest.location}: the scan protected its items in another way than the mapping asks for now",
            table=mapping.name,
            hint="take another scan",
        )
    return manifest.protection != ""
