"""Promote during a deployment: the old replicator and the new one write while columns are filled."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs import promote as promote_module
from pipeline.jobs.promote import promote
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from tests.jobs.conftest import CREATED, record
from tests.jobs.test_promote import CITY, stored, with_columns


@pytest.mark.parametrize("seconds", [4])
def test_nothing_is_lost_while_old_and_new_replicators_write(
    services: Services,
    connection: Connection,
    employees: TableMapping,
    seconds: float,
) -> None:
    """The old code writes each key up to some moment and the new code from then on, as in a deployment."""
    connection.execute(
        """INSERT INTO replica."Employees" ("Id", attributes, _as_of)
           SELECT n, jsonb_build_object('city', 'first ' || n), '2020-01-01' FROM generate_series(1, 20000) n"""
    )
    grown = with_columns(employees, CITY)
    migrate(connection, [grown])
    wanted: dict[int, str | None] = {n: f"first {n}" for n in range(1, 20_001)}
    stop, failures = threading.Event(), list[BaseException]()

    def write(number: int) -> None:
        try:
            _write_both(services, employees, grown, number, wanted, stop)
        except BaseException as error:  # noqa: BLE001 - raised by the test
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    deadline, reports = time.monotonic() + seconds, list[Any]()
    while time.monotonic() < deadline or len(reports) < 2:
        reports.append(promote(services, grown))
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    last = promote(services, grown)
    assert last.finished
    assert max(report.longest_lock_seconds for report in reports) < promote_module.LONGEST_LOCK_SECONDS
    assert len([n for n, city in wanted.items() if city and not city.startswith("first")]) > 50, "it was written to"
    assert stored(connection, "City") == {n: (city, "{}") for n, city in wanted.items()}


def _write_both(
    services: Services,
    old: TableMapping,
    new: TableMapping,
    number: int,
    wanted: dict[int, str | None],
    stop: threading.Event,
) -> None:
    replicators = [Replicator([m], lambda: services.connect("test"), writer=f"{number}") for m in (old, new)]
    sequence, deployed = number, set[int]()
    while not stop.is_set():
        sequence += 2
        keys = [(sequence * step) % 10_000 * 2 + 1 + number for step in (1, 7, 11)]
        by_new = sequence % 3 == 0
        keys = [key for key in dict.fromkeys(keys) if by_new or key not in deployed]
        if by_new:
            deployed |= set(keys)
        # The new code may also remove the attribute; promoting cannot see what the old code removes.
        city = None if by_new and sequence % 2 else f"{'new' if by_new else 'old'} {sequence}"
        image: dict[str, Any] = {"city": {"S": city}} if city else {}
        records = [record(key, sequence, "MODIFY", at=CREATED, **image) for key in keys]
        if records:
            replicators[by_new].replicate({"Records": records}, deadline=time.monotonic() + 60)
            wanted |= dict.fromkeys(keys, city)
    for replicator in replicators:
        replicator.close()
