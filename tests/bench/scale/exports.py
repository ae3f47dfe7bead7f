"""The exports of the scale run, in the documented layout, written as their lines are made: memory stays flat.

Lines come in random order of their keys: each block takes numbers from the whole range, shuffled.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import random
from array import array
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from tests.bench.scale import rows

FILES = 8
TABLE_ARN = "arn:aws:dynamodb:eu-central-1:111122223333:table/Employees"
_BLOCK = 25_000
_ASCII_EVERY = 97
"""One line in so many has every other character escaped, as a JSON writer may."""
State = Literal["first", "changes", "second", "later"]


@dataclass(frozen=True)
class Export:
    """One export: what it holds and its time. `later` is a small one, which only says that time has passed."""

    state: State
    time: datetime

    @property
    def location(self) -> str:
        """Where it stands below a folder."""
        return f"{self.state}/AWSDynamoDB/{self.id}/manifest-summary.json"

    @property
    def id(self) -> str:
        """As DynamoDB names exports."""
        return f"{int(self.time.timestamp() * 1000):014d}-{hashlib.sha256(self.state.encode()).hexdigest()[:8]}"


def exports(now: datetime) -> list[Export]:
    """The exports of one size, an hour apart; the newest is some hours old, as none may be in the future."""
    states: tuple[State, ...] = ("first", "changes", "second", "later")
    begin = now.replace(microsecond=0) - timedelta(hours=len(states) + 2)
    return [Export(state, begin + timedelta(hours=hour)) for hour, state in enumerate(states)]


def write(folder: Path, export: Export, items: int) -> str:
    """Write an export by two processes; returns the location of its manifest."""
    summary = folder / export.location
    data = summary.parents[1] / "data" if export.state == "changes" else summary.parent / "data"
    data.mkdir(parents=True)
    summary.parent.mkdir(exist_ok=True)
    with ProcessPoolExecutor(2) as pool:
        entries = list(pool.map(partial(_write_file, folder / export.state, data, export, items), range(FILES)))
    _write_manifest(folder / export.state, summary, export, entries)
    return summary.absolute().as_uri()


def _write_file(root: Path, data: Path, export: Export, items: int, part: int) -> dict[str, Any]:
    path = data / f"{hashlib.sha256(f'{export.state}{part}'.encode()).hexdigest()[:26]}.json.gz"
    written = size_bytes = 0
    with _compressed(path) as out:
        for block in _blocks(export, items, part):
            content = "\n".join(_lines(export, items, block)) + "\n"
            size_bytes += out.write(content.encode())
            written += len(block)
    with path.open("rb") as content:
        md5 = hashlib.file_digest(content, lambda: hashlib.md5(usedforsecurity=False)).digest()
    return {
        "itemCount": written,
        "md5Checksum": base64.b64encode(md5).decode(),
        "etag": hashlib.md5(md5, usedforsecurity=False).hexdigest() + "-1",
        "dataFileS3Key": str(path.relative_to(root)),
        "raw": size_bytes,
    }


def _blocks(export: Export, items: int, part: int) -> Iterator[array[int]]:
    """Yield shuffled blocks of the numbers of one file."""
    choose = random.Random(part)
    if export.state == "changes":
        numbers = array("q", islice(rows.changed(items), part, None, FILES))
        choose.shuffle(numbers)
        yield from (numbers[start : start + _BLOCK] for start in range(0, len(numbers), _BLOCK))
        return
    last = {"first": items, "second": items + items // rows.EVERY * rows.NEW, "later": rows.EVERY}[export.state]
    mine = range(part + 1, last + 1, FILES)
    stride = -(-len(mine) // _BLOCK) or 1
    for start in choose.sample(range(stride), stride):
        block = array("q", mine[start::stride])
        if export.state != "first":
            block = array("q", (number for number in block if rows.second_state(number, items) is not None))
        choose.shuffle(block)
        yield block


def _lines(export: Export, items: int, block: array[int]) -> Iterator[str]:
    made = rows.item
    if export.state == "first":
        each = (f'{{"Item":{made(number, 0)}}}' for number in block)
    elif export.state == "changes":
        each = (_change(export, items, number) for number in block)
    else:
        states = ((number, rows.second_state(number, items)) for number in block)
        each = (f'{{"Item":{made(number, state)}}}' for number, state in states if state is not None)
    for place, line in enumerate(each):
        yield line if place % _ASCII_EVERY else json.dumps(json.loads(line), separators=(",", ":"))


def _change(export: Export, items: int, number: int) -> str:
    state = rows.second_state(number, items)
    new = f',"NewImage":{rows.item(number, state)}' if state is not None else ""
    micros = int(export.time.timestamp() - 1800) * 1_000_000 + number % 1_000_000
    return f'{{"Metadata":{{"WriteTimestampMicros":{{"N":"{micros}"}}}},"Keys":{{"Id":{{"N":"{number}"}}}}{new}}}'


def _compressed(path: Path) -> BinaryIO:
    """Open a file to compress into, with isal where it is installed: several times faster than zlib."""
    try:
        from isal import igzip  # noqa: PLC0415 - optional
    except ImportError:
        return cast("BinaryIO", gzip.open(path, "wb", compresslevel=1))
    return cast("BinaryIO", igzip.IGzipFile(path, "wb", compresslevel=1))


def _write_manifest(root: Path, summary_path: Path, export: Export, entries: list[dict[str, Any]]) -> None:
    files_path = summary_path.with_name("manifest-files.json")
    window = {"exportFromTime": _iso(export.time - timedelta(hours=1)), "exportToTime": _iso(export.time)}
    kind = (
        window | {"exportType": "INCREMENTAL_EXPORT", "outputView": "NEW_IMAGE"}
        if export.state == "changes"
        else {"exportTime": _iso(export.time), "exportType": "FULL_EXPORT"}
    )
    summary = {
        "version": "2023-08-01",
        "exportArn": f"{TABLE_ARN}/export/{export.id}",
        "startTime": _iso(export.time),
        "endTime": _iso(export.time + timedelta(minutes=5)),
        "tableArn": TABLE_ARN,
        "tableId": "11111111-2222-3333-4444-555555555555",
        "s3Bucket": "bench",
        "s3Prefix": None,
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": None,
        "manifestFilesS3Key": str(files_path.relative_to(root)),
        "billedSizeBytes": sum(entry["raw"] for entry in entries),
        "itemCount": sum(entry["itemCount"] for entry in entries),
        "outputFormat": "DYNAMODB_JSON",
        **kind,
    }
    lines = [json.dumps({name: value for name, value in entry.items() if name != "raw"}) for entry in entries]
    for path, content in ((files_path, "\n".join(lines) + "\n"), (summary_path, json.dumps(summary))):
        path.write_text(content)
        md5 = hashlib.md5(content.encode(), usedforsecurity=False).digest()
        path.with_suffix(".md5").write_bytes(base64.b64encode(md5))
    (summary_path.parent / "_started").touch()


def _iso(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
