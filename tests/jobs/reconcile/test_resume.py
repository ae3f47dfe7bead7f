"""Runs that were killed, interrupted or abandoned: their work counts once, and they leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.aurora.compare import reconciliations
from pipeline.aurora.compare.compare import Comparison
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import TransientError
from pipeline.core.model.mapping_digest import digests
from pipeline.jobs import export_file
from pipeline.jobs.reconcile import settle
from tests.jobs.reconcile.conftest import Source, execute, found


def leftovers(connection: Connection) -> list[str]:
    return [
        name
        for (name,) in connection.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_%'"
        )
    ]


def break_off(*_: object, **__: object) -> None:
    raise TransientError("broken off")


def statuses(connection: Connection) -> list[str]:
    return [status for (status,) in connection.execute("SELECT status FROM replication.reconciliations ORDER BY id")]


def test_a_run_broken_off_while_comparing_does_not_stage_again(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong' WHERE "Id" = 3""")
    location, said = source.export(6), list[str]()
    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "compare", break_off)
        with pytest.raises(TransientError):
            source.reconcile_with(location)
    assert statuses(connection) == ["comparing"]
    with monkeypatch.context() as patched:
        patched.setattr(export_file, "read_lines", break_off)
        report = source.reconcile_with(location, on_progress=said.append)
    assert "resuming reconciliation 1: 5 of 5 files are staged" in said
    assert (report.resumed, report.reconciliation_id, report.compared, found(report)) == (True, 1, 10, (0, 0, 1))
    assert (statuses(connection), leftovers(connection)) == (["done"], [])
    assert not source.reconcile_with(location).resumed, "a run that ended is not resumed"


def test_a_run_that_failed_while_resolving_resolves_the_rest_and_counts_all_of_it(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settle, "KEYS_AT_ONCE", 3)
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong' WHERE "Id" < 8""")
    location, read_items, calls = source.export(6), settle.read_again, list[int]()

    def read_twice(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3:
            raise TransientError("throttled")
        return read_items(*arguments)  # type: ignore[arg-type]  # passed through

    monkeypatch.setattr(settle, "read_again", read_twice)
    with pytest.raises(TransientError):
        source.reconcile_with(location, repair=True)
    assert connection.execute("SELECT count(*) FROM replication.drift WHERE repaired").fetchone() == (6,)
    report = source.reconcile_with(location, repair=True)
    assert (report.different, report.repaired, report.compared) == (8, 8, 10)
    assert len(calls) == 4, "what was resolved was not read again"


def test_a_run_that_an_older_version_began_is_resumed_after_the_upgrade(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = source.export(6)
    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "compare", break_off)
        with pytest.raises(TransientError):
            source.reconcile_with(location)
    connection.execute("UPDATE replication.reconciliations SET shape = %s", [digests(source.mapping)[-1]])
    assert source.reconcile_with(location).resumed
    assert statuses(connection) == ["done"]


def test_another_snapshot_abandons_the_run_and_drops_what_it_left(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(Comparison, "compare", break_off)
        with pytest.raises(TransientError):
            source.reconcile(6)
    assert len(leftovers(connection)) == 2
    report = source.reconcile(6.5)
    assert not report.resumed
    assert (statuses(connection), leftovers(connection)) == (["abandoned", "done"], [])


def test_a_server_that_crashed_has_emptied_everything_or_nothing_and_the_run_begins_again(
    source: Source, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(connection, """UPDATE replica."Employees" SET "Name" = 'wrong' WHERE "Id" = 3""")
    location = source.export(6)
    with monkeypatch.context() as patched:
        patched.setattr(settle, "read_again", break_off)
        with pytest.raises(TransientError):
            source.reconcile_with(location)
    # Crash recovery does this to unlogged tables.
    unlogged = connection.execute(
        "SELECT oid::regclass::text FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r'"
    )
    tables = [name for (name,) in unlogged]
    assert len(tables) == 5, "both of the run's own tables, and its marks"
    execute(connection, f"TRUNCATE {', '.join(tables)}")
    report = source.reconcile_with(location)
    assert (report.resumed, report.compared, found(report)) == (True, 10, (0, 0, 1))


KILLED = """
import os, signal, sys
from datetime import timedelta
from pathlib import Path
from dataclasses import replace
from pipeline.aurora.compare.candidates import Candidates
from pipeline.jobs.reconcile.reconcile import reconcile
from pipeline.jobs.services import Services
from pipeline.mappings import load_mappings
from pipeline.settings import Settings

folder, table, location, url = sys.argv[1:]
(mapping,) = (m for m in load_mappings(Path(folder)) if m.name == "employees")
Candidates.next = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)
settings = Settings.from_environment(dict(os.environ) | {"DATABASE_URL": url})
reconcile(Services(settings), replace(mapping, table=table), location, margin=timedelta(minutes=5), processes_from=0)
"""


def test_a_run_killed_between_comparing_and_resolving_resumes(
    source: Source, connection: Connection, database: str
) -> None:
    execute(connection, """DELETE FROM replica."Employees" WHERE "Id" = 3""")
    location = source.export(6)
    tables = Path(__file__).parents[3] / "tables"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tables), source.mapping.table, location, database],
        check=False,
        env=dict(os.environ) | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert killed.returncode == -signal.SIGKILL
    assert reconciliations.staged_files(connection, 1)
    report = source.when_unlocked(connection, lambda: source.reconcile_with(location))
    assert (report.resumed, report.reconciliation_id, found(report)) == (True, 1, (1, 0, 0))
