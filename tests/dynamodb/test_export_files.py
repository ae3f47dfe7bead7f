"""Data files: whole lines in bounded memory, and every way in which a file can be wrong."""

from __future__ import annotations

import gzip
import itertools
import os
import tracemalloc
import zlib
from pathlib import Path

import pytest
from isal import isal_zlib

from pipeline.core.errors import TerminalError
from pipeline.core.exports.lines import count_lines
from pipeline.dynamodb.exports import export_files
from pipeline.dynamodb.exports.export_files import BLOCK_BYTES, ExportFileError, check_count, read_lines
from pipeline.dynamodb.exports.manifest import ExportFile
from pipeline.dynamodb.exports.objects import FolderObjects, MissingObjectError
from tests.dynamodb.export_fixture import md5_text

pytestmark = pytest.mark.usefixtures("inflating")


@pytest.fixture(params=[zlib, isal_zlib], ids=["zlib", "isal"])
def inflating(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run each test with zlib, and with isal where it is installed."""
    monkeypatch.setattr(export_files, "zlib", request.param)


LINES = [b'{"Item":{"Id":{"N":"%d"},"t":{"S":"%s"}}}' % (n, b"x" * (n % 700)) for n in range(20_000)]
TEXT = b"".join(line + b"\n" for line in LINES)


def stored(tmp_path: Path, content: bytes, *, count: int = len(LINES), md5_of: bytes | None = None) -> ExportFile:
    path = tmp_path / "data.json.gz"
    path.write_bytes(content)
    return ExportFile(str(path).lstrip("/"), count, md5_text(content if md5_of is None else md5_of).decode(), "etag-1")


def read(file: ExportFile) -> list[bytes]:
    return list(read_lines(FolderObjects(), "", file))


def test_blocks_are_whole_lines_of_about_one_size(tmp_path: Path) -> None:
    blocks = read(stored(tmp_path, gzip.compress(TEXT)))
    assert b"".join(blocks) == TEXT
    assert all(block.endswith(b"\n") for block in blocks)
    assert max(map(len, blocks)) < BLOCK_BYTES + 1000
    assert len(blocks) < 1.5 * len(TEXT) / BLOCK_BYTES
    assert sum(map(count_lines, blocks)) == len(LINES)


def test_several_gzip_members(tmp_path: Path) -> None:
    cuts = [0, 1, 100_001, 2_000_000, len(TEXT)]
    members = [gzip.compress(TEXT[start:end]) for start, end in itertools.pairwise(cuts)]
    assert b"".join(read(stored(tmp_path, b"".join(members)))) == TEXT


def test_a_last_line_without_its_end(tmp_path: Path) -> None:
    assert b"".join(read(stored(tmp_path, gzip.compress(TEXT[:-1])))) == TEXT


@pytest.mark.parametrize("content", [b"", gzip.compress(b"", mtime=0)])
def test_a_file_without_lines(tmp_path: Path, content: bytes) -> None:
    assert read(stored(tmp_path, content, count=0)) == []


def test_a_line_longer_than_a_block_and_longer_than_any(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"a\n" + b"b" * (5 * BLOCK_BYTES) + b"\nc\n"
    file = stored(tmp_path, gzip.compress(text))
    assert b"".join(read(file)) == text
    monkeypatch.setattr(export_files, "LONGEST_LINE_BYTES", 1 << 20)
    with pytest.raises(ExportFileError, match="it has a line of over 1 MiB"):
        read(file)


def test_memory_is_bounded(tmp_path: Path) -> None:
    line = os.urandom(500).hex().encode() + b"\n"
    file = stored(tmp_path, gzip.compress(line * 60_000, compresslevel=1))
    tracemalloc.start()
    try:
        size = sum(map(len, read_lines(FolderObjects(), "", file)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 60_000 * len(line) > 60_000_000
    assert peak < 4_000_000


def test_another_files_bytes(tmp_path: Path) -> None:
    with pytest.raises(ExportFileError, match=r"data\.json\.gz: its MD5 is .{24}, and the manifest states .{24}; copy"):
        read(stored(tmp_path, gzip.compress(TEXT), md5_of=b"another"))


def test_blocks_come_before_the_md5_is_known_and_the_error_at_the_end(tmp_path: Path) -> None:
    blocks = read_lines(FolderObjects(), "", stored(tmp_path, gzip.compress(TEXT), md5_of=b"another"))
    assert next(blocks) == TEXT[: TEXT.rindex(b"\n", 0, BLOCK_BYTES) + 1]
    with pytest.raises(ExportFileError):
        list(blocks)


@pytest.mark.parametrize("keep", [5, 1000, -1, -9])
def test_a_truncated_file(tmp_path: Path, keep: int) -> None:
    whole = gzip.compress(TEXT)
    with pytest.raises(ExportFileError, match=r"data\.json\.gz: it is truncated"):
        read(stored(tmp_path, whole[:keep], md5_of=whole))


def test_a_damaged_file_is_told_by_its_md5(tmp_path: Path) -> None:
    whole = gzip.compress(TEXT)
    damaged = whole[:2000] + bytes([whole[2000] ^ 0xFF]) + whole[2001:]
    with pytest.raises(ExportFileError, match="its MD5 is"):
        read(stored(tmp_path, damaged, md5_of=whole))


@pytest.mark.parametrize(
    "content", [TEXT[:5000], gzip.compress(TEXT) + b"garbage" * 3, gzip.compress(TEXT) + bytes(512)]
)
def test_what_is_not_gzip_or_has_garbage_behind_although_its_md5_matches(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ExportFileError, match="its bytes match the manifest's MD5, but are not gzip"):
        read(stored(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingObjectError, match=rf"file://{tmp_path}/no\.json\.gz: there is no such object"):
        read(ExportFile(f"{tmp_path}/no.json.gz".lstrip("/"), 1, "", ""))


def test_the_count_is_held_against_the_manifest(tmp_path: Path) -> None:
    file = stored(tmp_path, gzip.compress(TEXT))
    check_count(file, "", len(LINES))
    with pytest.raises(TerminalError, match="it has 19999 lines, and the manifest states 20000 items"):
        check_count(file, "", len(LINES) - 1)
