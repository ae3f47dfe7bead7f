"""The commands that the product prints, carried out on the world as its jobs do.

Invariant: the product's own code decides: the cutting of windows, the verdict on a difference, the ordering rule. This
module only rebuilds what those jobs do with AWS and SQL: exports, what exports leave out, reads, writes, waiting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from pipeline.aurora.compare.candidates import Candidate
from pipeline.aurora.compare.compare import Compared
from pipeline.core.exports.windows import (
    SHORTEST,
    Span,
    Window,
    covered,
    seam,
    shortest_range,
    split,
    whole_seconds,
    windows_from_cuts,
)
from pipeline.core.ordering import Position, snapshot_position, supersedes
from pipeline.jobs.reconcile.verdict import SnapshotTime, Verdict, judge
from tests.stress.operations.product import WrongClock
from tests.stress.operations.source import SECOND
from tests.stress.operations.world import MARGIN, Export, Reconciled

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stress.operations.product import Product
    from tests.stress.operations.source import Table
    from tests.stress.operations.world import Row, World

RESTORABLE_BEHIND = timedelta(minutes=5)
PATIENCE_SECONDS, STILL_SECONDS, LOOK_SECONDS = 900, 90, 30
MOST_LAG = timedelta(seconds=300)


@dataclass(slots=True)
class Outcome:
    """The outcome of a command. `code` as the process's: 0, 1 a person is needed, 2 wrong use, 3 away."""

    code: int
    why: str = ""
    hint: str = ""
    """A command that the message names."""
    undecided: int = 0
    drift: list[int] = field(default_factory=list[int])
    false: list[int] = field(default_factory=list[int])
    """Keys called drift although a working function was about to bring their change."""


class Commands:
    """`meanwhile` is what the world does while a command waits, `tick` runs the probe."""

    def __init__(
        self, world: World, product: Product, meanwhile: Callable[[float], None], tick: Callable[[], None]
    ) -> None:
        self.world, self.product = world, product
        self._wait, self._tick = meanwhile, tick

    def run(self, text: str) -> Outcome:
        """Carry out `dynaurora …`."""
        if self.world.random.random() < 0.5:  # typed into a shell; otherwise a run of a process that lives on
            self.product.clock = self.product.new_clock()
        try:
            return self._run(text)
        except WrongClock:
            return Outcome(2, "the clock is too far off", hint="clock")

    def _run(self, text: str) -> Outcome:
        verb, *words = text.split()
        options = dict(zip(words[1::1], [*words[2:], ""], strict=False))
        if self.world.table.name != self.world.database.source and verb != "repoint":
            return Outcome(2, "another table is the source of record", hint="repoint orders")
        match verb:
            case "catch-up":
                return self._catch_up(_moment(options["--from"]), _moment(options["--to"]))
            case "load":
                return self._load()
            case "reconcile":
                return self._reconcile(repair="--repair" in words)
            case "redrive":
                return self._redrive()
            case "repoint":
                return self._repoint()
            case _:
                raise AssertionError(f"a command that no one carries out: {text}")

    # Catching up.

    def _catch_up(self, start: datetime, end: datetime) -> Outcome:
        self.product.refuse_wrong_clock()
        asked, table = Window(whole_seconds(start), whole_seconds(end)), self.world.table
        least = shortest_range(MARGIN, SHORTEST)
        if asked.end - asked.start < least:
            return Outcome(2, f"the range {asked} is shorter than {least}")
        if not self._wait_for_end(asked.end):
            return Outcome(2, f"the range {asked} ends in the future")
        if asked.start < table.recovery_since:
            return Outcome(1, "beyond point-in-time recovery")
        cuts = [export.time for export in self.world.database.exports if not export.is_seam]
        windows = split(asked.start, asked.end, cuts=cuts, shortest=least)
        if not windows:
            return self._too_close(asked, cuts, least)
        for window, is_seam in _planned(windows, cuts, table.recovery_since, least):
            self._wait(self.world.random.choice([20, 120, 300]))
            if self._moved(table):
                return Outcome(3, "the table is gone")
            self._apply_window(window, table, is_seam=is_seam)
        healed = Window(asked.start, max(window.end for window in windows))
        told = min(window.start for window, _ in _planned(windows, cuts, table.recovery_since, least))
        self._read_untold(told, healed.end, table)
        database = self.world.database
        database.covers = (*database.covers, (healed.start, healed.end))
        return Outcome(0)

    def _too_close(self, asked: Window, cuts: list[datetime], least: timedelta) -> Outcome:
        """Refuse as the job does, with the range that its hint names."""
        inside = sorted(cut for cut in cuts if asked.start < cut < asked.end)
        begin = whole_seconds(inside[0]) - least
        return Outcome(2, "a load lies too close to both ends", hint=catch_up_command(begin, asked.end))

    def _wait_for_end(self, end: datetime) -> bool:
        """Wait until the range's end can be exported; refuse an end further in the future than the job waits."""
        if end > self.product.now() + self.product.future_waited_for:
            return False
        while self.world.now - RESTORABLE_BEHIND < end:
            self._wait(60)
        return True

    def _apply_window(self, window: Window, table: Table, *, is_seam: bool) -> None:
        database = self.world.database
        position = snapshot_position(window.end, MARGIN)
        if any((e.since, e.time) == (window.start, window.end) for e in database.exports):
            return
        spans = [
            Span(export.since, export.time if export.since else export.time - MARGIN)
            for export in database.exports
            if (export.since is None and export.time - MARGIN >= position.as_of)
            or (export.since is not None and export.time - MARGIN > position.as_of)
        ]
        for key, (made, state) in table.window(window.start, window.end).items():
            if state is None or not covered(made, spans):
                database.apply(key, position, state)
        database.exports = (*database.exports, Export(window.end, window.start, is_seam=is_seam))

    def _read_untold(self, start: datetime, end: datetime, table: Table) -> None:
        database, by_snapshot = self.world.database, {e.time - MARGIN for e in self.world.database.exports}
        for key, row in list(database.rows.items()):
            at = row.position
            if row.state is None or not start <= at.as_of < end - MARGIN:
                continue
            if at.version is not None or at.as_of not in by_snapshot:
                read_at = self.product.ask()
                self.product.refuse_wrong_clock()
                database.apply(key, snapshot_position(read_at, MARGIN), table.items.get(key))

    # Loading.

    def _load(self) -> Outcome:
        self.product.refuse_wrong_clock()
        table, time = self.world.table, self.world.now
        items = dict(table.items)
        self._wait(self.world.random.choice([60, 300, 900]))
        if self._moved(table):
            return Outcome(3, "the table is gone")
        database, position = self.world.database, snapshot_position(time, MARGIN)
        for key, state in items.items():
            database.apply(key, position, state)
        database.exports = (*database.exports, Export(time, by_load=True))
        return Outcome(0)

    def _redrive(self) -> Outcome:
        for replicator in self.world.replicators:
            if not self.world.refuses(replicator.stream):
                for record in replicator.given_up:
                    self.world.database.apply(record.key, record.position, record.state)
                replicator.given_up = []
        return Outcome(0)

    def _repoint(self) -> Outcome:
        self.product.repoint(self.world.table.name, self.world.table.table_id)
        return Outcome(0)

    def _moved(self, table: Table) -> bool:
        return table is not self.world.table or table.name != self.world.database.source

    # Reconciling.

    def _reconcile(self, *, repair: bool) -> Outcome:
        if repair:
            self.product.refuse_wrong_clock()
        run = Reconciliation(self.world, self.product, self._wait, self._tick, repair=repair)
        return run.carry_out()


class Reconciliation:
    """One run: a snapshot, the differences from it, and looks at those until they are decided or the wait ends."""

    def __init__(
        self,
        world: World,
        product: Product,
        wait: Callable[[float], None],
        tick: Callable[[], None],
        *,
        repair: bool,
    ) -> None:
        self.world, self.product, self._wait, self._tick, self._repair = world, product, wait, tick, repair
        self.table = world.table
        self.snapshot = SnapshotTime(world.now, MARGIN)
        self.items = self.table.snapshot(world.now, world.now)
        self.left: dict[int, Candidate] = {}
        self.not_before: dict[int, datetime] = {}
        self.outcome = Outcome(0)
        self.unrepaired = 0

    def carry_out(self) -> Outcome:
        self._wait(self.world.random.choice([30, 120, 600]))
        unfit = {state for state in self.items.values() if state.startswith("!")}
        self.world.database.unfit |= unfit  # counted as rejected, and reported
        self.items = {key: state for key, state in self.items.items() if state not in unfit}
        if self.table is not self.world.table:
            return Outcome(3, "the table is gone")
        if not self._paused():
            return Outcome(3, "replication is too far behind")
        for key in self.world.keys:
            if self.items.get(key) != self.world.database.shown(key):
                self.left[key] = Candidate(key, (str(key),), _hash(self.items.get(key)), None, None, proven=False)
        for key in list(self.left):
            self._look(key)
        self._settle_rest()
        for key in [key for key, candidate in self.left.items() if candidate.proven]:
            self._look(key, last=True)
        outcome, database = self.outcome, self.world.database
        outcome.undecided = len(self.left)
        clean = not self.left and not self.unrepaired
        database.reconciliations = (*database.reconciliations, Reconciled(self.snapshot.as_of, clean))
        outcome.code = 0 if clean else 1
        return outcome

    def _paused(self) -> bool:
        """Wait while replication is known to be too far behind; returns False if that takes too long."""
        for _ in range(PATIENCE_SECONDS // LOOK_SECONDS // 3):
            if self.product.lag() <= MOST_LAG:
                return True
            self._wait(3 * LOOK_SECONDS)
            self._tick()
        return False

    def _settle_rest(self) -> None:
        waited, moved, moved_at = 0, None, 0
        while self.left and waited < PATIENCE_SECONDS:
            self._tick()
            applied = self.product.applied()
            if (applied.through, applied.newest) != moved:
                moved, moved_at = (applied.through, applied.newest), waited
            now, through = self.product.now(), self.product.applied().read_covered
            for key, candidate in list(self.left.items()):
                old_enough = self.not_before.get(key, now) <= now
                if old_enough and (candidate.proven or candidate.read_at is None or candidate.read_at <= through):
                    self._look(key)
            proven = any(candidate.proven for candidate in self.left.values())
            if not self.left or (waited - moved_at > STILL_SECONDS and not proven):
                return
            self._wait(LOOK_SECONDS)
            waited += LOOK_SECONDS

    def _look(self, key: int, *, last: bool = False) -> None:
        database, candidate = self.world.database, self.left[key]
        before = _mark(database.rows.get(key))
        read_at, state = self.product.ask(), self.table.items.get(key)
        if self.world.random.random() < 0.2:
            self._wait(1)
        if state is not None and state.startswith("!"):
            database.unfit.add(state)
            del self.left[key]
            return
        now, compared = self.product.now(), _compared(database.rows.get(key), state)
        applied = self.product.applied_to(key)
        verdict = judge(candidate, compared, before=before, applied=applied, snapshot=self.snapshot, now=now)
        if verdict is Verdict.RIGHT:
            del self.left[key]
        elif verdict is Verdict.OPEN:
            self.left[key] = _after_look(candidate, before, compared.mark, read_at)
        else:
            self._drifted(key, compared, state, read_at, last=last)

    def _drifted(self, key: int, found: Compared, state: str | None, read_at: datetime, *, last: bool) -> None:
        database, candidate = self.world.database, self.left[key]
        position = snapshot_position(read_at, MARGIN)
        if self._repair:
            self.product.refuse_wrong_clock()
        if self._repair and (found.as_of is None or supersedes(position, Position(found.as_of, found.version))):
            database.apply(key, position, state)
        after = _compared(database.rows.get(key), state)
        mendable = None if found.as_of is None else found.as_of + MARGIN + SECOND
        now = self.product.now()
        if after.kind is not None and self._repair and not last and mendable and now < mendable <= now + PATIENCE:
            self.left[key] = Candidate(key, candidate.key, candidate.snapshot_hash, found.mark, read_at, proven=True)
            self.not_before[key] = mendable
            return
        del self.left[key]
        self.outcome.drift.append(key)
        if after.kind is not None:
            self.unrepaired += 1


PATIENCE = timedelta(seconds=PATIENCE_SECONDS)


def catch_up_command(start: datetime, end: datetime) -> str:
    return f"catch-up orders --from {start:%Y-%m-%dT%H:%M:%SZ} --to {end:%Y-%m-%dT%H:%M:%SZ}"


def printed(remedy: str) -> list[str]:
    """Return the product's own commands in a remedy, in their order."""
    return re.findall(r"`dynaurora ([^`]+)`", remedy)


def _planned(
    windows: list[Window], cuts: list[datetime], earliest: datetime, least: timedelta
) -> list[tuple[Window, bool]]:
    """Put seams and other overlapping windows after the windows they overlap, as the catch-up does."""
    from_cuts = windows_from_cuts(windows, cuts, shortest=least)
    planned: list[tuple[Window, bool]] = []
    for window in windows:
        planned.append((window, False))
        across = seam(window.start, MARGIN, earliest=earliest, end=windows[-1].end, shortest=SHORTEST)
        if across is not None:
            planned.append((across, True))
        planned += [(other, True) for other in from_cuts if window.start < other.end <= window.end]
    return planned


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


def _hash(state: str | None) -> int | None:
    return None if state is None else int(state.lstrip("!w"))


def _mark(row: Row | None) -> str:
    return "" if row is None else f"{row.position.version}/{row.position.as_of}/{row.state}"


def _compared(row: Row | None, state: str | None) -> Compared:
    shown = row.state if row else None
    kind = None if shown == state else "extra" if state is None else "missing" if shown is None else "different"
    return Compared(
        kind,
        (),
        _mark(row),
        row.position.version if row else None,
        row.position.as_of if row else None,
        None if row is None else row.state is None,
        _hash(state),
    )


def _after_look(candidate: Candidate, before: str, mark: str, read_at: datetime) -> Candidate:
    """Keep the earlier look if the row has not changed since."""
    if candidate.mark is not None and candidate.mark == mark:
        return candidate
    kept = (before, read_at) if before == mark else (None, None)
    return Candidate(candidate.number, candidate.key, candidate.snapshot_hash, *kept, proven=False)
