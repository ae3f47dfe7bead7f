"""Several tables are probed side by side, up to a limit, and one that fails does not hold up the others."""

from __future__ import annotations

from dataclasses import replace
from threading import Barrier, Lock, Thread

import pytest

from pipeline.core.errors import ConfigurationError, TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.clock import SourceClock
from pipeline.jobs.probe import probe_tables as module
from pipeline.jobs.probe.probe_tables import TABLES_AT_ONCE, probe_tables
from pipeline.jobs.services import Services
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedShard, ScriptedStream


def tables(employees: TableMapping, count: int) -> list[TableMapping]:
    return [replace(employees, name=f"table{number}") for number in range(count)]


def test_tables_are_probed_side_by_side_and_no_more_than_a_few_at_once(
    services: Services, employees: TableMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each waits until all that may run at once are running: one after another they would never meet."""
    met, lock, at_once = Barrier(TABLES_AT_ONCE), Lock(), list[int]()
    now = 0

    def look(_: Services, mapping: TableMapping) -> str:
        nonlocal now
        with lock:
            now += 1
            at_once.append(now)
        met.wait(30)
        with lock:
            now -= 1
        return mapping.name

    monkeypatch.setattr(module, "probe", look)
    wanted = tables(employees, 2 * TABLES_AT_ONCE)
    assert probe_tables(services, wanted) == [mapping.name for mapping in wanted]
    assert max(at_once) == TABLES_AT_ONCE


def test_a_table_that_cannot_be_probed_holds_up_no_other(services: Services, employees: TableMapping) -> None:
    stream = ScriptedStream()
    stream.shards["a"] = ScriptedShard()
    scripted = ScriptedServices(services.settings, stream)
    broken = replace(employees, name="not_migrated")
    one, other = probe_tables(scripted, [broken, employees])
    assert isinstance(one, TerminalError)
    assert not isinstance(other, Exception)
    assert other.lag_seconds == 0.0


def test_what_no_table_can_do_without_ends_it(
    services: Services, employees: TableMapping, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(_: Services, mapping: TableMapping) -> str:
        raise ConfigurationError("no Region", table=mapping.name)

    monkeypatch.setattr(module, "probe", look)
    with pytest.raises(ConfigurationError):
        probe_tables(services, tables(employees, 20))


def test_threads_that_ask_at_once_share_one_clock(services: Services) -> None:
    """When two threads asked first, two clocks used to be made: one got the time, the other asked again."""
    for _ in range(200):
        fresh, met, clocks = Services(services.settings), Barrier(4), list[SourceClock]()

        def ask(fresh: Services = fresh, met: Barrier = met, clocks: list[SourceClock] = clocks) -> None:
            met.wait(30)
            clocks.append(fresh.clock)

        threads = [Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(set(map(id, clocks))) == 1
