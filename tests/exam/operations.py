"""`make exam OPERATIONS=1`: do the printed commands restore equality, whatever happens to database, stream and clocks?

There are four operations, one after the other, on a big table under writes: the database is restored from a backup; the
stream is disabled and enabled again; no Lambda function runs for longer than the stream keeps its records; and the
clock of the host that commands run on steps while rows are damaged. After each one a person does what `dynaurora status
NAME --probe` and `dynaurora reconcile NAME` print (`tests.exam.person`). Then a plain scan of the table is compared
with a plain SELECT.

Time passes by setting the clock that all servers share (`tests.exam.clocks`); the local stream drops records by that
clock. Unlike AWS, the local stack has one shard in a stream, and its exports take the past from a Kinesis destination
of the table, because local DynamoDB does not keep its own past.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tests.exam.clocks import Clocks
from tests.exam.faults import Injection
from tests.exam.person import Person, printed
from tests.exam.proof import prove
from tests.exam.source import Source, Writing, halted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess

    from pipeline.local.screen import Screen

FIGURES, TRANSCRIPT = Path("build/exam-operations.json"), Path("build/exam-operations.txt")
RATE = 50.0
MINUTE, HOUR = 60.0, 3600.0
# How far the host's clock is ahead: too far for repairs (the margin is 300 s, and the measurement may be wrong by 2 s),
# but little enough for AWS to accept its signatures.
STEP_SECONDS = 299.0
# Real seconds of writes between two steps of the clock.
_WRITES_SECONDS = 3.0
_MOST_FAULTS = 2_000


@dataclass
class Drill:
    """The table, its writer and replicator, the clocks, and the person."""

    screen: Screen
    source: Source
    clocks: Clocks
    person: Person
    writing: Writing
    rows: int
    folder: Path
    damaged: set[str] = field(default_factory=set[str])
    """Digests of the keys of rows that were damaged in Aurora itself."""
    _replicating: AbstractContextManager[BaseProcess] | None = None

    def start_replicator(self) -> None:
        self._replicating = self.source.replicating()
        self._replicating.__enter__()

    def stop_replicator(self) -> None:
        if self._replicating is not None:
            self._replicating.__exit__(None, None, None)
            self._replicating = None

    def pass_time(self, seconds: float, *, steps: int = 3) -> None:
        """Let time pass in steps, with writes and a tick of the probe in each, as a schedule would have."""
        for _ in range(steps):
            time.sleep(_WRITES_SECONDS)
            self.clocks.pass_on(seconds / steps)
            self.person.look(quietly=True)

    def back_up(self) -> Path:
        """Copy the database's files while the server is stopped, as a snapshot of its disks would."""
        postgres, copy = self.source.stack.postgres, self.folder / "backup"
        postgres.stop()
        _copy(postgres.data_dir, copy)
        postgres.restart()
        return copy

    def restore(self, copy: Path) -> None:
        """Replace the database with a backup."""
        postgres = self.source.stack.postgres
        postgres.stop()
        shutil.rmtree(postgres.data_dir)
        _copy(copy, postgres.data_dir)
        postgres.restart()


def database_restored(drill: Drill) -> None:
    """The database is restored from a backup that is an hour old."""
    copy = drill.back_up()
    drill.pass_time(HOUR, steps=4)
    drill.restore(copy)
    drill.pass_time(15 * MINUTE)


def stream_recreated(drill: Drill) -> None:
    """The stream is disabled for ten minutes of writes, then enabled again, and read by a new replicator."""
    drill.source.enable_stream(enabled=False)
    drill.pass_time(10 * MINUTE)
    drill.source.enable_stream()
    drill.stop_replicator()
    drill.start_replicator()
    drill.pass_time(15 * MINUTE)


def lambda_dead(drill: Drill) -> None:
    """No replicator runs for 30 hours of writes: the stream drops what is older than 24 hours."""
    drill.stop_replicator()
    drill.pass_time(30 * HOUR, steps=6)
    drill.start_replicator()
    drill.pass_time(15 * MINUTE)


def clock_stepped(drill: Drill) -> None:
    """The host's clock steps ahead by five minutes, and rows of the database are damaged by hand."""
    injection = Injection(drill.source, drill.rows, min(_MOST_FAULTS, drill.rows // 20))
    with closing(drill.source.services.connect("exam")) as connection:
        injection.prepare(connection)
        drill.pass_time(15 * MINUTE)
        injection.inject(connection)
    drill.damaged = {fault.digest for fault in injection.faults}
    drill.pass_time(15 * MINUTE)
    drill.clocks.set_host(STEP_SECONDS)


OPERATIONS: tuple[Callable[[Drill], None], ...] = (database_restored, stream_recreated, lambda_dead, clock_stepped)


def run(screen: Screen, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Carry out the operations and return the figures."""
    clocks = Clocks(folder / "clocks")
    TRANSCRIPT.parent.mkdir(exist_ok=True)
    try:
        screen.step("starting PostgreSQL 17 and the local AWS stack, on a clock of their own")
        with (
            Source(folder / "stack", environment=clocks.servers, recovery_reach_seconds=35 * 24 * HOUR) as source,
            TRANSCRIPT.open("w") as transcript,
        ):
            return _exam(screen, source, clocks, folder, transcript, options)
    finally:
        clocks.close()


def _exam(
    screen: Screen, source: Source, clocks: Clocks, folder: Path, transcript: TextIO, options: argparse.Namespace
) -> dict[str, Any]:
    screen.step(f"putting {options.rows:,} items into DynamoDB")
    source.fill(options.rows, change_log=True)
    person = Person(source.mapping.name, _environment(source, clocks, folder), lambda: _a_minute(clocks), transcript)
    with source.writing(options.rows, options.rate) as writing:
        drill = Drill(screen, source, clocks, person, writing, options.rows, folder)
        drill.start_replicator()
        try:
            told = _begin(drill)
            done = [_carry_out(drill, operation) for operation in OPERATIONS]
        finally:
            drill.stop_replicator()
        writes = writing.count
    return {
        "equal": all(one["equal"] for one in done),
        "false_alarms": told + sum(one["false_alarms"] for one in done),
        "undecided_at_end": done[-1]["undecided"],
        "commands": sum(len(one["commands"]) for one in done),
        "looks": sum(one["looks"] for one in done),
        "writes": writes,
        "drill": done,
    }


def _begin(drill: Drill) -> int:
    """Load, leave it quiet for a while, and return how many findings are reported for a table that has none."""
    drill.screen.step("loading from an export, under live writes")
    drill.person.run(f"dynaurora load {drill.source.mapping.name}")
    drill.pass_time(30 * MINUTE)
    looked = drill.person.look()
    told = printed(looked)
    drill.screen.note(f"nothing has been done to it: {len(told)} commands printed")
    return len(told) + bool(looked.code)


def _carry_out(drill: Drill, operation: Callable[[Drill], None]) -> dict[str, Any]:
    what, name = (operation.__doc__ or "").strip(), operation.__name__
    drill.screen.step(what)
    drill.person.transcript.write(f"== {what}\n\n")
    started = time.monotonic()
    operation(drill)
    begun = _newest_reconciliation(drill.source)
    drill.screen.step("doing what is printed")
    repair = drill.person.put_right()
    for answer in repair.followed:
        drill.screen.note(f"{answer.command}  [exit {answer.code}, {answer.seconds:.1f} s]")
    drill.screen.step("comparing by a plain scan with a plain SELECT")
    with halted(drill.writing.process):
        drill.source.wait_until_applied()
        proof = prove(drill.source)
    undecided, false_alarms = _reconciliations(drill, begun)
    drill.screen.note(f"{'equal' if proof.equal else f'{proof.unequal:,} UNEQUAL'} over {proof.rows:,} rows")
    return {
        "operation": name,
        "equal": proof.equal and repair.proven,
        "unequal": proof.unequal,
        "rows": proof.rows,
        "proven": repair.proven,
        "looks": repair.looks,
        "commands": [answer.command for answer in repair.followed],
        "damaged": len(drill.damaged),
        "false_alarms": false_alarms,
        "undecided": undecided,
        "seconds": round(time.monotonic() - started, 1),
    }


def _reconciliations(drill: Drill, after: int) -> tuple[int, int]:
    """Return how many rows the newest reconciliation left undecided, and called drift though nobody damaged them."""
    with closing(drill.source.services.connect("exam")) as connection:
        row = connection.execute(
            "SELECT COALESCE(undecided, 0) FROM replication.reconciliations ORDER BY id DESC LIMIT 1"
        ).fetchone()
        told = {
            digest
            for (digest,) in connection.execute(
                "SELECT key_digest FROM replication.drift WHERE reconciliation_id > %s", [after]
            )
        }
    return (row[0] if row else 0), len(told - drill.damaged)


def _newest_reconciliation(source: Source) -> int:
    with closing(source.services.connect("exam")) as connection:
        row = connection.execute("SELECT COALESCE(max(id), 0) FROM replication.reconciliations").fetchone()
    return row[0] if row else 0


def _environment(source: Source, clocks: Clocks, folder: Path) -> dict[str, str]:
    tools = clocks.stand_in_for_chrony(folder / "bin")
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**source.environment(), **clocks.host, "PATH": path, "LC_ALL": "C.UTF-8"}


def _a_minute(clocks: Clocks) -> None:
    time.sleep(_WRITES_SECONDS)
    clocks.pass_on(MINUTE)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder with its owners."""
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["/bin/cp", "-a", str(source), str(target)], check=True)


def passed(figures: dict[str, Any]) -> bool:
    """Whether the exam was passed."""
    return bool(figures["equal"]) and not figures["false_alarms"] and not figures["undecided_at_end"]
