"""Promotion of a large table: a column filled over a million rows while changes arrive, and what it held up.

`python -m tests.bench --only promote` writes build/promote.json, and exits 0 only if no value was lost. The changes go
through the replicator: with the old mapping until the column has been added, with the new one from then on, as in a
deployment.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.aurora.schema.migrate import migrate
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.promote import LONGEST_LOCK_SECONDS, PromoteReport, promote
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from pipeline.settings import Settings
from tests.jobs.conftest import CREATED, record

ROOT = Path(__file__).parents[2]
COLUMN = "      City: {attribute: city, type: text}\n"


@dataclass
class Changes:
    """Changes at a steady rate, ten a batch, and what the table must hold at the end."""

    services: Services
    mapping: TableMapping
    rows: int
    rate: float
    cities: dict[int, str | None] = field(default_factory=dict[int, "str | None"])
    """What was written, by Id; None is an item without the attribute. A deleted one is in `deleted`."""
    deleted: set[int] = field(default_factory=set[int])
    written: int = 0
    slowest_batch_seconds: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)
    failures: list[BaseException] = field(default_factory=list[BaseException])

    def run(self) -> None:
        """Write until stopped."""
        try:
            self._run()
        except BaseException as error:  # noqa: BLE001 - raised by whoever started the thread
            self.failures.append(error)

    def _run(self) -> None:
        choose, started = random.Random(11), time.monotonic()
        mapping, replicator = self.mapping, self._replicator()
        while not self.stop.is_set():
            if mapping is not self.mapping:  # a deployment: the current batch is finished before the next
                replicator.close()
                mapping, replicator = self.mapping, self._replicator()
            records = [self._change(choose) for _ in range(10)]
            before = time.monotonic()
            replicator.replicate({"Records": records}, deadline=before + 60)
            self.slowest_batch_seconds = max(self.slowest_batch_seconds, time.monotonic() - before)
            self.stop.wait(max(0.0, self.written / self.rate - (time.monotonic() - started)))
        replicator.close()

    def _replicator(self) -> Replicator:
        return Replicator([self.mapping], lambda: self.services.connect("bench replicator"), writer="bench")

    def _change(self, choose: random.Random) -> dict[str, Any]:
        self.written += 1
        number, kind = choose.randint(1, self.rows + self.rows // 100), choose.random()
        self.deleted.discard(number)
        if kind < 0.1:
            self.deleted.add(number)
            return record(number, self.written, "REMOVE", at=CREATED)
        city = None if kind < 0.2 and len(self.mapping.targets[0].columns) > 3 else f"written {self.written}"
        self.cities[number] = city
        image: dict[str, Any] = {"city": {"S": city}} if city else {}
        return record(number, self.written, "MODIFY", at=CREATED, empName={"S": "n"}, level={"N": "7"}, **image)


def measure(url: str, rows: int, rate: float) -> dict[str, Any]:
    """Store the rows, write to them, add the column, promote it; return the figures."""
    text = (ROOT / "tables/employees.yaml").read_text()
    old = read_mapping(text, "old.yaml")
    new = read_mapping(text.replace("    unmapped:", f"{COLUMN}    unmapped:"), "new.yaml")
    services = Services(Settings.from_environment({"DATABASE_URL": url}))
    with closing(services.connect("bench")) as connection:
        migrate(connection, [old])
        connection.execute(
            """INSERT INTO replica."Employees" ("Id", "Name", "Department", attributes, _as_of)
               SELECT n, 'name ' || n, 'Sales', jsonb_build_object('city', 'city ' || n, 'level', n), '2020-01-01'
               FROM generate_series(1, %s) n""",
            [rows],
        )
        connection.execute('VACUUM ANALYZE replica."Employees"')
        changes = Changes(services, old, rows, rate)
        writer = threading.Thread(target=changes.run, name="changes")
        writer.start()
        time.sleep(2)
        quiet, changes.slowest_batch_seconds = changes.slowest_batch_seconds, 0.0
        started = time.monotonic()
        migrate(connection, [new])
        migrated = time.monotonic() - started
        time.sleep(1)
        changes.mapping = new
        time.sleep(1)
        written, started = changes.written, time.monotonic()
        report = promote(services, new)
        seconds = time.monotonic() - started
        during = changes.written - written
        changes.stop.set()
        writer.join()
        for failure in changes.failures:
            raise failure
        lost = _lost(connection.execute('SELECT "Id", "City" FROM public."Employees"').fetchall(), rows, changes)
        left = connection.execute("""SELECT count(*) FROM replica."Employees" WHERE attributes ? 'city'""").fetchone()
    return _figures(report, changes, rows) | {
        "migrate_seconds": round(migrated, 3),
        "promote_seconds": round(seconds, 1),
        "changes_while_promoting": during,
        "changes_a_second": round(during / seconds, 1),
        "slowest_batch_before_seconds": round(quiet, 3),
        "lost": lost,
        "left_in_jsonb": left[0] if left else None,
    }


def _figures(report: PromoteReport, changes: Changes, rows: int) -> dict[str, Any]:
    (found,) = report.attributes
    return {
        "rows": rows,
        "filled": found.filled,
        "passes": found.passes,
        "finished": report.finished,
        "lock_bound_seconds": LONGEST_LOCK_SECONDS,
        "longest_lock_seconds": round(report.longest_lock_seconds, 3),
        "slowest_batch_seconds": round(changes.slowest_batch_seconds, 3),
    }


def _lost(stored: list[tuple[Any, ...]], rows: int, changes: Changes) -> int:
    wanted: dict[int, str | None] = {n: f"city {n}" for n in range(1, rows + 1)} | changes.cities
    for number in changes.deleted:
        wanted.pop(number, None)
    view = dict(stored)
    return sum(wanted.get(n, "absent") != view.get(n, "absent") for n in wanted.keys() | view.keys())
