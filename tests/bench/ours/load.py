"""Dynaurora's load, called as its command line and Dagster call it."""

from __future__ import annotations

import sys

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.bench.contest import Spec, Work
from tests.bench.shapes import SHAPES


def prepare(spec: Spec) -> Work:
    """Read the mapping."""
    mapping = read_mapping(SHAPES[spec.shape].mapping, "bench.yaml")
    services = Services(Settings.from_environment({"DATABASE_URL": spec.url}))

    def work() -> dict[str, object]:
        # Small samples are loaded as large tables are: aside, by processes. A profiler only sees one process.
        processes_from = sys.maxsize if spec.options.get("threads") else 0
        report = load(
            services,
            mapping,
            spec.location,
            workers=spec.workers,
            aside_from=0,
            processes_from=spec.options.get("processes_from", processes_from),
        )
        return {"items": report.items, "rejected": report.rejected, "strategy": report.strategy}

    return work
