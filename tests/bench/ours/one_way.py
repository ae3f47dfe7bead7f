"""Dynaurora's load or its replicator with a fast path of decoding switched off: `options["off"]` names it."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable

from pipeline.core.decode import row_code
from pipeline.core.exports.fast import line_reader
from pipeline.core.exports.fast.line_reader import LineReader, Reading
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.attributes import to_json
from pipeline.core.types import jsonb
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.bench.contest import Spec, Work


def _no_line_templates() -> None:
    setattr(line_reader, "template_of", _none)  # noqa: B010  for this process


def _no_document_templates() -> None:
    setattr(line_reader, "common_template", _none)  # noqa: B010  for this process


def _no_document_forms() -> None:
    setattr(jsonb, "document_writer", lambda: to_json)  # noqa: B010  for this process


def _all_parsed() -> None:
    setattr(LineReader, "read", _nothing_read)  # noqa: B010  for this process


def _nothing_written() -> None:
    setattr(row_code, "fast_forms", _none)  # noqa: B010  for this process


def _none(*_: object) -> None:
    """Find nothing."""


def _nothing_read(*_: object) -> Reading:
    return Reading()


def _general() -> None:
    _all_parsed()
    _nothing_written()


OFF: dict[str, Callable[[], None]] = {
    "nothing": _none,
    "line templates": _no_line_templates,
    "document templates": _no_document_templates,
    "document forms": _no_document_forms,
    "reading unparsed": _all_parsed,
    "the written function": _nothing_written,
    "all of it": _general,
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
        gc.disable()  # as in a load's worker process, which would have everything switched on
        report = load(services, mapping, spec.location, workers=1, aside_from=0, processes_from=sys.maxsize)
        return {"items": report.items, "rejected": report.rejected}

    return work
