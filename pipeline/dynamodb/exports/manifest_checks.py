"""Checks a manifest for what a load must not ignore: a filter, impossible times, files of another export.

Invariant: every refusal names the manifest's member that caused it, and no member's value except a time.
"""

from __future__ import annotations

import posixpath
import re
from datetime import datetime
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.errors import TerminalError

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Mapping

DAMAGED = "the manifest is damaged; copy the export again from where DynamoDB wrote it, or request another"
NOT_WHOLE = (
    "request an export of the whole table, without a filter or projection: a filtered one does not say what is missing,"
    " so items and attributes would count as deleted"
)

# DynamoDB guide, S3DataExport.Output, and genuine exports.
_KNOWN = {
    "version", "exportArn", "startTime", "endTime", "tableArn", "tableId", "exportTime", "exportFromTime",
    "exportToTime", "outputView", "s3Bucket", "s3Prefix", "s3SseAlgorithm", "s3SseKmsKeyId", "manifestFilesS3Key",
    "billedSizeBytes", "itemCount", "outputFormat", "exportType",
}  # fmt: skip
# FilterSpecification of botocore's ExportDescription has FilterExpression, ProjectionExpression,
# KeyConditionExpression and their ExpressionAttributeNames and -Values; letters alone, whatever the spelling.
_OF_A_FILTER = ("filter", "projection", "projected", "keycondition", "expressionattribute")
_MOST_NAMED = 10


def filter_members(members: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the names of the members, including nested ones, which show that the export is not of the whole table."""
    found: list[str] = []
    for name, value in members.items():
        letters = re.sub("[^a-z]", "", name.lower())
        if any(word in letters for word in _OF_A_FILTER):
            if _says_something(value):
                found.append(name)
        elif isinstance(value, dict):
            found += [f"{name}.{inner}" for inner in filter_members(cast("dict[str, Any]", value))]
    return tuple(found)


def _says_something(value: object) -> bool:
    """Whether a member has content: null, false, "" and containers of only such values have none."""
    if isinstance(value, dict):
        return any(_says_something(inner) for inner in cast("dict[str, object]", value).values())
    if isinstance(value, list):
        return any(_says_something(inner) for inner in cast("list[object]", value))
    return value not in (None, False, "", "NONE")


def refuse_filtered(members: Mapping[str, Any], doing: str) -> None:
    """Raise TerminalError if the members say that the export was filtered or projected."""
    named = filter_members(members)
    if named:
        raise TerminalError(
            f"{doing}: the export is not of the whole table: {listed(named)} says that it was filtered or projected",
            hint=NOT_WHOLE,
        )


def unknown_members(summary: Mapping[str, Any], *, ours: Container[str]) -> tuple[str, ...]:
    """Return the names of the members that no export known to us has; `ours` are the marks of our own scans."""
    return tuple(name for name in summary if name not in _KNOWN and name not in ours)


def listed(names: Iterable[str]) -> str:
    """Return the names for a message; only the first ones if there are many."""
    all_names = list(names)
    more = len(all_names) - _MOST_NAMED
    return ", ".join(all_names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def check_times(times: Mapping[str, datetime | None], doing: str) -> None:
    """Raise TerminalError if one of the manifest's times comes after another that must be later.

    An export starts before it ends, contains nothing from after its end, and its window is not empty.
    """
    for first, last, may_be_equal in (
        ("startTime", "endTime", True),
        ("exportTime", "endTime", True),
        ("exportToTime", "endTime", True),
        ("exportFromTime", "exportToTime", False),
    ):
        begin, end = times.get(first), times.get(last)
        if begin is None or end is None or begin < end or (may_be_equal and begin == end):
            continue
        raise TerminalError(
            f"{doing}: its {first}, {begin.isoformat()}, is not before its {last}, {end.isoformat()}", hint=DAMAGED
        )


def check_inside(key: str, folder: str, where: str) -> None:
    """Raise TerminalError if a file's key is not in the folder of its export."""
    if ".." in key.split("/") or (folder and not posixpath.normpath(key).startswith(f"{folder}/")):
        raise TerminalError(
            f"reading {where}: the file {key} is outside the export's own folder {folder}/",
            hint="a manifest only names files of its own export; " + DAMAGED,
        )
