"""Streams an export's data files: inflates and checks them, and cuts them at line ends.

Invariant: memory is bounded whatever the file's size, and reading a file to its end without an error gives exactly the
bytes that DynamoDB wrote: the MD5 of the compressed bytes matches the manifest's. Blocks arrive before the MD5 is
known, so do not commit their results before the last block was read.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

from pipeline.core.errors import UnusableSnapshotError
from pipeline.dynamodb.exports.objects import join_location

if TYPE_CHECKING:
    import zlib
    from collections.abc import Iterator

    from pipeline.dynamodb.exports.manifest import ExportFile
    from pipeline.dynamodb.exports.objects import ObjectBody, ObjectStore

if not TYPE_CHECKING:
    try:  # the extra `fast`: the same interface, faster
        from isal import isal_zlib as zlib
    except ImportError:
        import zlib

# Measured beside a busy server: blocks of a quarter of this size cost a tenth more, because both sides take turns more
# often.
BLOCK_BYTES = 1 << 20
_READ_BYTES = 1 << 18
_GZIP = 31  # zlib's wbits for a gzip header and the largest window
# An item has at most 400 KB; as JSON, twice (old and new image) and at its most wasteful, some 12 MB.
LONGEST_LINE_BYTES = 64 << 20


class ExportFileError(UnusableSnapshotError):
    """A data file that differs from what DynamoDB wrote. The error names the file and the reason."""

    def __init__(self, location: str, reason: str) -> None:
        super().__init__(
            f"reading the export's file {location}: {reason}",
            hint="copy the file again from where DynamoDB wrote it, or request another export",
        )


def read_lines(store: ObjectStore, bucket: str, file: ExportFile) -> Iterator[bytes]:
    """Yield the file's lines in blocks of about 1 MiB, each ending at a line end.

    Raises ExportFileError if the file is truncated, damaged or a different one (at its end at the latest),
    MissingObjectError if there is none, TransientError if the connection keeps breaking.
    """
    location = join_location(bucket, file.key)
    body = store.open(bucket, file.key)
    try:
        rest: list[bytes] = []
        rest_bytes = 0
        for piece in _inflate(body, file, location):
            cut = piece.rfind(b"\n") + 1
            if not cut:
                rest.append(piece)
                rest_bytes += len(piece)
                if rest_bytes > LONGEST_LINE_BYTES:
                    raise ExportFileError(location, f"it has a line of over {LONGEST_LINE_BYTES >> 20} MiB")
                continue
            yield b"".join((*rest, piece[:cut])) if rest else piece[:cut]
            rest = [piece[cut:]] if cut < len(piece) else []
            rest_bytes = len(piece) - cut
        if rest:
            yield b"".join((*rest, b"\n"))
    finally:
        body.close()


def check_count(file: ExportFile, bucket: str, lines: int) -> None:
    """Raise ExportFileError unless as many lines were read as the manifest states."""
    if lines != file.item_count:
        raise ExportFileError(
            join_location(bucket, file.key), f"it has {lines} lines, and the manifest states {file.item_count} items"
        )


def _inflate(body: ObjectBody, file: ExportFile, location: str) -> Iterator[bytes]:
    """Yield the inflated bytes, at most a block at a time; compare the MD5 at the end."""
    digest = hashlib.md5(usedforsecurity=False)
    inflate = zlib.decompressobj(_GZIP)
    started = False
    try:
        while data := body.read(_READ_BYTES):
            started = True
            digest.update(data)
            while data:
                if inflate.eof:  # gzip allows one member after another
                    inflate = zlib.decompressobj(_GZIP)
                if piece := inflate.decompress(data, BLOCK_BYTES):
                    yield piece
                data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
        if not inflate.eof and (piece := inflate.flush()):
            yield piece
    except zlib.error:
        while data := body.read(_READ_BYTES):
            digest.update(data)
        _check_md5(digest.digest(), file, location)
        raise ExportFileError(location, "its bytes match the manifest's MD5, but are not gzip") from None
    if started and not inflate.eof:
        raise ExportFileError(location, "it is truncated: it ends in the middle of its gzip data")
    _check_md5(digest.digest(), file, location)


def _check_md5(digest: bytes, file: ExportFile, location: str) -> None:
    found = base64.b64encode(digest).decode()
    if found != file.md5:
        raise ExportFileError(location, f"its MD5 is {found}, and the manifest states {file.md5}")
