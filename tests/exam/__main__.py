"""`make exam`: does reconciliation find exactly the planted faults? A big table, live writes, real damage.

`make exam QUIET=1`: the same without a fault, for half an hour. The replicator is halted from time to time for longer
than the margin, and nothing may be called drift. Either run writes its figures to `build/exam.json`. It exits with 0
only if every fault was found, nothing else was, and the copy is equal at the end.

`make exam OPERATIONS=1`: see `tests.exam.operations`; it writes `build/exam-operations.json` and `.txt`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.jobs.load.load import load
from pipeline.jobs.reconcile.reconcile import Bounds, reconcile
from pipeline.jobs.snapshots.snapshot import take_snapshot
from pipeline.local.interrupts import unwind_on_signals
from pipeline.local.screen import Screen
from tests.exam import operations
from tests.exam.faults import Fault, Injection
from tests.exam.proof import prove
from tests.exam.source import Source, halted

if TYPE_CHECKING:
    from pipeline.jobs.reconcile.reconcile import ReconcileReport

RATE = 200.0
FIGURES = Path("build/exam.json")
# Low enough that the run decides nearly every row; the five minutes of production would leave more in flight.
MARGIN = timedelta(seconds=5)
# How long the quiet run halts the replicator, well beyond the margin, before every other snapshot.
HALT_SECONDS = 20.0
# How long a reconciliation waits for replication. The quiet run waits in vain while the replicator is halted.
PATIENCE, WAIT_IN_VAIN = timedelta(minutes=15), timedelta(seconds=60)


def exam(screen: Screen, source: Source, options: argparse.Namespace) -> dict[str, Any]:
    """Inject faults, reconcile with repair, compare what was reported with what was done."""
    with source.replicating(), source.probing():
        with source.writing(options.rows, options.rate) as writing:
            _load(screen, source)
            screen.step(f"injecting {options.faults:,} faults")
            injection = Injection(source, options.rows, options.faults)
            with closing(source.services.connect("exam")) as connection:
                injection.prepare(connection)
                source.wait_until_applied()
                injection.inject(connection)
            time.sleep(MARGIN.total_seconds() + 1)
            started, before = time.monotonic(), writing.count
            report = _reconcile(screen, source, repair=True, patience=PATIENCE)
            rate = (writing.count - before) / (time.monotonic() - started)
        screen.step("the writer has stopped; comparing by a plain scan against a plain SELECT")
        source.wait_until_applied()
    proof = prove(source)
    return {
        **_verdicts(source, report, injection.faults),
        "equal_after_repair": proof.equal,
        "unequal_after_repair": proof.unequal,
        "items": proof.items,
        "rows": proof.rows,
        "writes_per_second": round(rate, 1),
        "repaired": report.repaired,
        "in_flight": report.in_flight,
        "undecided": report.undecided,
        "reconcile_seconds": round(report.seconds, 1),
    }


def _load(screen: Screen, source: Source) -> None:
    screen.step("loading from an export, under live writes")
    report = load(source.services, source.mapping, take_snapshot(source.services, source.mapping).location)
    screen.note(f"{report.items:,} items loaded in {report.seconds:.1f} s ({report.strategy})")


def _reconcile(screen: Screen, source: Source, *, repair: bool, patience: timedelta = WAIT_IN_VAIN) -> ReconcileReport:
    screen.step("taking a fresh export")
    location = take_snapshot(source.services, source.mapping).location
    screen.step("reconciling" + (" and repairing" if repair else ""))
    report = reconcile(
        source.services,
        source.mapping,
        location,
        repair=repair,
        margin=MARGIN,
        on_progress=screen.note,
        bounds=Bounds(patience=patience),
    )
    screen.note(
        f"{report.compared:,} compared, {report.drift:,} drifted, {report.in_flight:,} in flight,"
        f" {report.undecided:,} undecided, {report.seconds:.1f} s"
    )
    return report


def _verdicts(source: Source, report: ReconcileReport, faults: list[Fault]) -> dict[str, Any]:
    with closing(source.services.connect("exam")) as connection:
        said: dict[str, tuple[str, frozenset[str]]] = {
            digest: (kind, frozenset(columns))
            for digest, kind, columns in connection.execute(
                "SELECT key_digest, kind, columns FROM replication.drift WHERE reconciliation_id = %s",
                [report.reconciliation_id],
            )
        }
    missed: Counter[str] = Counter()
    misnamed: Counter[str] = Counter()
    for fault in faults:
        verdict = said.pop(fault.digest, None)
        if verdict is None:
            missed[fault.done] += 1
        elif verdict[0] not in fault.kinds or fault.columns not in (None, verdict[1]):
            misnamed[fault.done] += 1
    return {
        "injected": len(faults),
        "found": len(faults) - missed.total(),
        "false_alarms": len(said),
        "missed": dict(missed),
        "misnamed": dict(misnamed),
        "injected_by_kind": dict(Counter(fault.done for fault in faults)),
    }


def quiet(screen: Screen, source: Source, options: argparse.Namespace) -> dict[str, Any]:
    """Reconcile repeatedly under writes, without a fault: every difference called drift is a false alarm."""
    reports: list[ReconcileReport] = []
    halts = 0
    with source.replicating() as replicator, source.probing():
        with source.writing(options.rows, options.rate) as writing:
            _load(screen, source)
            started, before = time.monotonic(), writing.count
            while time.monotonic() - started < options.minutes * 60:
                if len(reports) % 2:
                    halts += 1
                    with halted(replicator):
                        screen.step(f"the replicator is halted for {HALT_SECONDS:.0f} s and a reconciliation")
                        time.sleep(HALT_SECONDS)
                        reports.append(_reconcile(screen, source, repair=False))
                else:
                    reports.append(_reconcile(screen, source, repair=False))
            seconds, writes = time.monotonic() - started, writing.count - before
        screen.step("the writer has stopped; comparing by a plain scan against a plain SELECT")
        source.wait_until_applied()
    proof = prove(source)
    return {
        "injected": 0,
        "found": 0,
        "false_alarms": sum(report.drift for report in reports),
        "equal_after_repair": proof.equal,
        "unequal_after_repair": proof.unequal,
        "items": proof.items,
        "rows": proof.rows,
        "minutes": round(seconds / 60, 1),
        "writes": writes,
        "writes_per_second": round(writes / seconds, 1),
        "reconciliations": len(reports),
        "while_halted": halts,
        "compared": sum(report.compared for report in reports),
        "in_flight": sum(report.in_flight for report in reports),
        "undecided": sum(report.undecided for report in reports),
    }


def main() -> int:
    """Run the exam, or the quiet run."""
    parser = argparse.ArgumentParser(prog="make exam", description=__doc__)
    parser.add_argument("--quiet", action="store_true", help="no faults: half an hour of writes, no alarm")
    parser.add_argument(
        "--operations", action="store_true", help="a restore, a recreated stream, a dead Lambda, a clock"
    )
    parser.add_argument("--rows", type=int, help="default 1,000,000; 200,000 in the other two runs")
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--rate", type=float, help="writes a second")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long the quiet run takes")
    options = parser.parse_args()
    options.rows = options.rows or (200_000 if options.quiet or options.operations else 1_000_000)
    options.rate = options.rate or (operations.RATE if options.operations else RATE)
    unwind_on_signals()
    screen = Screen()
    with tempfile.TemporaryDirectory(prefix="dynaurora-exam-") as name:
        Path(name).chmod(0o711)
        if options.operations:
            figures = operations.run(screen, Path(name), options)
            return _done(screen, options, figures, operations.FIGURES, passed=operations.passed(figures))
        screen.step("starting PostgreSQL 17 and the local AWS stack")
        with Source(Path(name) / "stack") as source:
            screen.step(f"putting {options.rows:,} items into DynamoDB")
            source.fill(options.rows)
            figures = (quiet if options.quiet else exam)(screen, source, options)
    exact = figures["found"] == figures["injected"] and not figures["false_alarms"] and not figures.get("misnamed")
    passed = exact and figures["equal_after_repair"]
    return _done(screen, options, {"quiet": options.quiet, **figures}, FIGURES, passed=passed)


def _done(screen: Screen, options: argparse.Namespace, figures: dict[str, Any], path: Path, *, passed: bool) -> int:
    figures = {"rows_at_start": options.rows, **figures, "seconds": round(screen.seconds, 1)}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    screen.console.print_json(json.dumps(figures))
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
