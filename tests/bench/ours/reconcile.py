"""Dynaurora's reconciliation of a table with the export it was loaded from, called as the command line calls it."""

from __future__ import annotations

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.jobs.reconcile.reconcile import reconcile
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.bench.contest import Spec, Work
from tests.bench.shapes import SHAPES


def prepare(spec: Spec) -> Work:
    """Read the mapping."""
    mapping = read_mapping(SHAPES[spec.shape].mapping, "bench.yaml")
    services = Services(Settings.from_environment({"DATABASE_URL": spec.url}))

    def work() -> dict[str, object]:
        report = reconcile(services, mapping, spec.location, workers=spec.workers)
        return {"compared": report.compared, "drift": report.drift}

    return work
