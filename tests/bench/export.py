"""Exports to measure with, in the documented layout, and the same rows as ready-made text for COPY.

Invariant: it uses only the standard library, and memory stays flat, because items are written as they are made. A
finished export is kept in its folder, which is complete when its `data.json` is there.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tests.bench.items import items
from tests.bench.reference import child_lines, copy_line
from tests.bench.shapes import SHAPES

FILES = 8
VERSION = 3
"""Raise it when the items change: kept exports are then made again."""
TABLE_ARN = "arn:aws:dynamodb:eu-central-1:111122223333:table/"
EXPORT_ID = "01715684460608-0a1b2c3d"
EXPORT_TIME = "2024-05-14T11:01:00.608Z"


@dataclass(frozen=True)
class Data:
    """One generated export. `location` is that of its manifest; sizes are of the lines, plain and compressed."""

    shape: str
    count: int
    location: str
    files: tuple[str, ...]
    text_path: str
    size_bytes: int
    gzip_bytes: int
    child_path: str = ""
    """The ready-made text of the child rows, if there are any."""


def generate(folder: Path, shape: str, count: int) -> Data:
    """Make, or find, the export of `count` items of a shape under `folder`, by two processes."""
    root = folder.absolute() / f"{shape}-{count}-v{VERSION}"
    kept, text = root / "data.json", root / "rows.tsv"
    if kept.exists():
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["text_path"] == str(text):
            found["files"] = tuple(found["files"])
            return Data(**found)
    shutil.rmtree(root, ignore_errors=True)
    export = root / "AWSDynamoDB" / EXPORT_ID
    (export / "data").mkdir(parents=True)
    with ProcessPoolExecutor(2) as pool:
        entries = list(pool.map(partial(_write_part, root, shape, count), range(FILES)))
    for name in ("rows", "children"):
        with (root / f"{name}.tsv").open("wb") as whole:
            for part in range(FILES):
                path = root / f"{name}.{part}"
                with path.open("rb") as rows:
                    shutil.copyfileobj(rows, whole, 1 << 20)
                path.unlink()
    location = _write_manifest(root, export, shape, entries)
    paths = tuple(str(root / entry["dataFileS3Key"]) for entry in entries)
    sizes = (sum(entry["raw"] for entry in entries), sum(Path(path).stat().st_size for path in paths))
    child = str(root / "children.tsv") if SHAPES[shape].child else ""
    data = Data(shape, count, location, paths, str(text), *sizes, child)
    kept.write_text(json.dumps(asdict(data)))
    return data


def _write_part(root: Path, shape_name: str, count: int, part: int) -> dict[str, Any]:
    """Write one data file and its rows as text; return its entry of the manifest, and its size inflated."""
    shape = SHAPES[shape_name]
    key = f"AWSDynamoDB/{EXPORT_ID}/data/{hashlib.sha256(str(part).encode()).hexdigest()[:26]}.json.gz"
    size_bytes = written = 0
    with (
        gzip.open(root / key, "wb", compresslevel=6) as lines,
        (root / f"rows.{part}").open("w", encoding="utf-8", newline="") as rows,
        (root / f"children.{part}").open("w", encoding="utf-8", newline="") as children,
    ):
        for item in items(shape, count, part, FILES):
            line = json.dumps({"Item": item}, separators=(",", ":"), ensure_ascii=written % 97 == 0).encode() + b"\n"
            lines.write(line)
            rows.write(copy_line(shape, item))
            children.write(child_lines(shape, item))
            size_bytes += len(line)
            written += 1
    digest = hashlib.md5(usedforsecurity=False)
    with (root / key).open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    md5 = digest.digest()
    return {
        "itemCount": written,
        "md5Checksum": base64.b64encode(md5).decode(),
        "etag": hashlib.md5(md5, usedforsecurity=False).hexdigest() + "-1",
        "dataFileS3Key": key,
        "raw": size_bytes,
    }


def _write_manifest(root: Path, export: Path, shape: str, entries: list[dict[str, Any]]) -> str:
    table = SHAPES[shape].table
    files_key = f"AWSDynamoDB/{EXPORT_ID}/manifest-files.json"
    summary = {
        "version": "2020-06-30",
        "exportArn": f"{TABLE_ARN}{table}/export/{EXPORT_ID}",
        "startTime": EXPORT_TIME,
        "endTime": "2024-05-14T11:06:00.608Z",
        "tableArn": f"{TABLE_ARN}{table}",
        "tableId": "11111111-2222-3333-4444-555555555555",
        "exportTime": EXPORT_TIME,
        "s3Bucket": "bench",
        "s3Prefix": None,
        "s3SseAlgorithm": "AES256",
        "s3SseKmsKeyId": None,
        "manifestFilesS3Key": files_key,
        "billedSizeBytes": sum(entry["raw"] for entry in entries),
        "itemCount": sum(entry["itemCount"] for entry in entries),
        "outputFormat": "DYNAMODB_JSON",
        "exportType": "FULL_EXPORT",
    }
    lines = [json.dumps({name: value for name, value in entry.items() if name != "raw"}) for entry in entries]
    for path, content in (
        (root / files_key, "\n".join(lines) + "\n"),
        (export / "manifest-summary.json", json.dumps(summary)),
    ):
        path.write_text(content)
        md5 = hashlib.md5(content.encode(), usedforsecurity=False).digest()
        path.with_suffix(".md5").write_bytes(base64.b64encode(md5))
    (export / "_started").touch()
    return (export / "manifest-summary.json").as_uri()
