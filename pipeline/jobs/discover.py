"""Discover: sample a DynamoDB table, profile its attributes, and draft the mapping that would take them.

Invariant: it reads the source within the given budget and changes nothing, neither there nor in Aurora. What it returns
about numbers is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import pandas as pd

from pipeline.core.discover.key_kinds import ItemKind, kinds, told_apart
from pipeline.core.discover.mapping_draft import Discovered
from pipeline.core.discover.observations import Observation, observe
from pipeline.core.discover.profile import AttributeProfile
from pipeline.core.errors import ConfigurationError
from pipeline.core.exports.export_lines import parse_full
from pipeline.dynamodb.exports.export_files import read_lines
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.dynamodb.exports.objects import join_location
from pipeline.dynamodb.scans import scan_segments
from pipeline.dynamodb.tables import describe

if TYPE_CHECKING:
    from collections.abc import Generator

    from pipeline.core.model.attributes import Item
    from pipeline.dynamodb.scans import ScanPage
    from pipeline.jobs.services import Services

DEFAULT_ITEMS = 20_000
DEFAULT_READ_CAPACITY = 100.0
"""Read capacity units a second: with eventually consistent reads some 800 KB."""
# A scan reads a segment from its beginning, so many segments take the sample from many places of the table.
_SEGMENTS = 8


@dataclass(frozen=True, slots=True)
class Sample:
    """Items of a table, and what reading them cost."""

    table: str
    key: dict[str, str]
    items: list[Item]
    complete: bool
    """Whether these are all of the items."""
    source: str
    """In words, for the mapping file."""
    consumed_capacity: float


def sample_by_scan(
    services: Services,
    table: str,
    *,
    items: int = DEFAULT_ITEMS,
    read_capacity_per_second: float = DEFAULT_READ_CAPACITY,
    on_progress: Callable[[int], None] | None = None,
) -> Sample:
    """Read up to `items` items from several places of the table, with eventually consistent reads."""
    described = describe(services.dynamodb, table)
    pages: Generator[ScanPage] = scan_segments(  # type: ignore[assignment]  # a generator; closing it ends the scan
        services.dynamodb,
        described.name,
        segments=_SEGMENTS,
        consistent=False,
        read_capacity_per_second=read_capacity_per_second,
    )
    found: list[Item] = []
    consumed = 0.0
    complete = True
    with closing(pages):
        for page in pages:
            consumed += page.consumed_capacity
            found += page.items
            if on_progress:
                on_progress(min(len(found), items))
            if len(found) >= items:
                complete = len(found) == items and next(pages, None) is None
                break
    how = "every item" if complete else f"{_SEGMENTS} places"
    source = f"{_count(found[:items])} of {described.name} (a scan of {how})"
    return Sample(described.name, described.key, found[:items], complete, source, consumed)


def sample_of_export(
    services: Services,
    table: str,
    location: str,
    *,
    items: int = DEFAULT_ITEMS,
    key: dict[str, str] | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> Sample:
    """Read up to `items` items of a full export, equally many from each file.

    `key` saves asking DynamoDB for it. A file that is not read to its end is not verified: this is a sample, not a
    load.
    """
    manifest = read_manifest(services.store(location), location, expected_table=table)
    if manifest.kind != "full":
        raise ConfigurationError(f"sampling {location}: it is an incremental export", hint="give a full one")
    key = key or describe(services.dynamodb, table).key
    found: list[Item] = []
    # Small files first: the larger ones after them supply what a small one cannot.
    for number, file in enumerate(sorted(manifest.files, key=lambda file: file.item_count)):
        share = -(-(items - len(found)) // (len(manifest.files) - number))
        blocks = read_lines(services.store(location), manifest.bucket, file)
        name = join_location(manifest.bucket, file.key)
        with closing(blocks):  # type: ignore[type-var]  # a generator
            found += islice(_items(blocks, name), share)
        if on_progress:
            on_progress(len(found))
    complete = len(found) == manifest.item_count
    source = f"{_count(found)} of {table} (a full export of {manifest.snapshot_time:%Y-%m-%d %H:%M} UTC)"
    return Sample(table, key, found, complete, source, 0.0)


def _items(blocks: Iterable[bytes], file: str) -> Iterator[Item]:
    line = 1
    for block in blocks:
        parsed = parse_full(block, file=file, first_line=line)
        line += len(parsed)
        yield from parsed


def _count(items: list[Item]) -> str:
    return f"{len(items):,} item{'' if len(items) == 1 else 's'}"


def discover(sample: Sample) -> Discovered:
    """Profile a sample: over all its items, and for each kind if the keys show kinds."""
    each, found = kinds(sample.items, sample.key)
    index = {tuple(kind.patterns.values()): number for number, kind in enumerate(found)}
    rows = [(index[kind], *seen) for item, kind in zip(sample.items, each, strict=True) for seen in observe(item)]
    frame = pd.DataFrame.from_records(rows, columns=["kind", *Observation._fields])
    apart = told_apart(found)
    return Discovered(
        table=sample.table,
        key=sample.key,
        sample=sample.source,
        profiles=_profiles(frame, len(sample.items)),
        kinds=tuple(found) if apart else (),
        by_kind=_profiles_by_kind(frame, found) if apart else None,
    )


def _profiles_by_kind(frame: pd.DataFrame, found: list[ItemKind]) -> dict[int, tuple[AttributeProfile, ...]]:
    return {number: _profiles(frame[frame["kind"] == number], kind.items) for number, kind in enumerate(found)}


def _profiles(frame: pd.DataFrame, items: int) -> tuple[AttributeProfile, ...]:
    grouped = frame.groupby("attribute", sort=True)
    summary: Any = grouped.agg(
        shortest=("length", "min"),
        longest=("length", "max"),
        usual=("length", "median"),
        smallest=("number", _smallest),
        largest=("number", _largest),
        whole=("whole_digits", "max"),
        fraction=("fraction_digits", "max"),
    )
    tags, forms = _counted(frame, "tag"), _counted(frame[frame["tag"].isin(["S", "N"])], "form")
    return tuple(
        AttributeProfile(
            path=row.Index,
            items=items,
            tags=tags[row.Index],
            forms=forms.get(row.Index, {}),
            shortest=int(row.shortest),
            longest=int(row.longest),
            usual_length=int(row.usual),
            smallest=None if pd.isna(row.smallest) else row.smallest,
            largest=None if pd.isna(row.largest) else row.largest,
            whole_digits=int(row.whole),
            fraction_digits=int(row.fraction),
        )
        for row in summary.itertuples()
    )


def _smallest(numbers: pd.Series[Any]) -> Any:  # noqa: ANN401 - Decimal or None: a float would lose digits
    return min(numbers.dropna(), default=None)


def _largest(numbers: pd.Series[Any]) -> Any:  # noqa: ANN401 - see _smallest
    return max(numbers.dropna(), default=None)


def _counted(frame: pd.DataFrame, what: str) -> dict[str, dict[str, int]]:
    """Return, by attribute, how many of its values are of each tag or form, the most frequent first."""
    counts: Any = frame.groupby(["attribute", what]).size()
    found: dict[str, dict[str, int]] = {}
    for (attribute, value), count in counts.sort_values(ascending=False, kind="stable").items():
        found.setdefault(attribute, {})[value] = int(count)
    return found
