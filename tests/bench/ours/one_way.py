"""Dynaurora's load or its replicator with one of its fast ways of decoding switched off: `options["off"]` names it."""

from __future__ import annotations

import sys
from collections.abc import Callable

from pipeline.core.decode import row_code
from pipeline.core.exports.export_lines import decode_full
from pipeline.core.exports.fast import line_pattern, line_reader
from pipeline.core.exports.fast.block_decode import BlockDecoder, Decoded
from pipeline.core.exports.fast.line_reader import LineReader
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.types.copy_text import copy_text
from pipeline.core.types.fast import plain_spelling
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.bench.contest import Spec, Work


def _no_line_shape() -> None:
    LineReader._read_by_shape = lambda self, piece, reading: piece


def _roomy_alone() -> None:
    LineReader._made = lambda self, *, empties: line_pattern.LinePattern(
        self._target, self._names, empties=True, shapes=self._shapes
    )
    LineReader._roomy_pattern = lambda self: self._pattern


def _no_document_shapes() -> None:
    line_reader._STUDIED = 0


def _not_line_by_line() -> None:
    def none(pattern, piece, spelt, reading, *, escaped):
        return piece.split(b"\n")[:-1]

    line_reader._read_each = none


def _no_patterns() -> None:
    LineReader.read = lambda self, block: None


def _no_plain_code() -> None:
    before = BlockDecoder.__init__

    def init(self, target, settled=None):
        before(self, target, settled)
        self._plain = self._escaped

    BlockDecoder.__init__ = init


def _no_copy_code() -> None:
    """Rows by the stream's function."""

    class Fast:
        def __init__(self, rows):
            self.row = row_code.row_function(rows)

    def parsing(self, block, file, first_line):
        rows, failures = decode_full(block, Fast(self.rows), file=file, first_line=first_line)
        return Decoded(copy_text(rows), len(rows), failures)

    BlockDecoder._decode_parsing = parsing


def _no_code() -> None:
    def parsing(self, block, file, first_line):
        rows, failures = decode_full(block, self.rows, file=file, first_line=first_line)
        return Decoded(copy_text(rows), len(rows), failures)

    BlockDecoder._decode_parsing = parsing


def _no_row_function() -> None:
    from pipeline.core.streams import stream_records

    stream_records.row_function = lambda decoder: decoder.row


def _marks_at_once() -> None:
    plain_spelling.marked_one_by_one = plain_spelling.marked_at_once


def _general() -> None:
    _no_patterns()
    _no_code()


OFF: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "line shape": _no_line_shape,
    "strict pattern": _roomy_alone,
    "document shapes": _no_document_shapes,
    "line by line": _not_line_by_line,
    "patterns": _no_patterns,
    "plain code": _no_plain_code,
    "code for COPY": _no_copy_code,
    "generated code": _no_code,
    "row function": _no_row_function,
    "one by one": _marks_at_once,
    "all": _general,
}


def prepare(spec: Spec) -> Work:
    """Switch it off."""
    OFF[spec.options["off"]]()
    if spec.options["path"] == "apply":
        from tests.bench.ours import apply  # noqa: PLC0415 - the handler is imported where it is measured

        return apply.prepare(spec)
    mapping = read_mapping(spec.options["mapping"], "bench.yaml")
    services = Services(Settings.from_environment({"DATABASE_URL": spec.url}))

    def work() -> dict[str, object]:
        report = load(services, mapping, spec.location, workers=1, aside_from=0, processes_from=sys.maxsize)
        return {"items": report.items, "rejected": report.rejected}

    return work
