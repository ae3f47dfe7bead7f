"""A load whose files are spread over several runs: who loads what, what happens when one dies or comes too late."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from multiprocessing.connection import Connection as SendConnection
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
from psycopg import sql

from pipeline.aurora.bookkeeping import load_lead, loads
from pipeline.aurora.bookkeeping.load_lead import Lead, LoadEndedError, led_load, take_lead, take_part
from pipeline.aurora.rows import build_aside, build_indexes
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError, DataError, TransientError
from pipeline.core.model.mapping import TableMapping
from pipeline.core.ordering import snapshot_position
from pipeline.dynamodb.exports.manifest import read_manifest
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.load.load_file import FileLoader, LoadWork
from pipeline.jobs.load.load_help import ENDED_BEFORE, ENDED_MEANWHILE, NOTHING_LEFT, HelpReport, help_load
from pipeline.jobs.load.load_progress import LoadProgress
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout, WrittenExport
from tests.jobs.conftest import view

ITEMS, FILES = 4_000, 16
WHOLE = {n: (f"name {n}", "NA") for n in range(ITEMS)}
NEVER = 10**9
CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload([__name__])


def item(number: int) -> dict[str, Any]:
    return {"Id": {"N": str(number)}, "empName": {"S": f"name {number}"}}


@pytest.fixture
def export(exports: ExportFactory) -> WrittenExport:
    return exports.full([item(n) for n in range(ITEMS)], Layout(files=FILES, empty_files=0))


@pytest.fixture(params=["merge", "aside"])
def aside_from(request: pytest.FixtureRequest) -> int:
    return 0 if request.param == "aside" else NEVER


Helping = Callable[..., HelpReport]


@pytest.fixture
def helping(services: Services, employees: TableMapping) -> Helping:
    def taking_part(
        lead: Lead,
        mapping: TableMapping = employees,
        *,
        processes_from: int = NEVER,
        **options: Any,  # noqa: ANN401 - help_load's own
    ) -> HelpReport:
        return help_load(services, mapping, lead, processes_from=processes_from, **options)

    return taking_part


def leftovers(connection: Connection) -> int:
    """Tables that loads left; a temporary one may still be there for a moment after its session was closed."""
    return len(
        connection.execute(
            "SELECT FROM pg_tables WHERE schemaname = 'replica' AND tablename LIKE '\\_load%'"
        ).fetchall()
    )


class Interrupted(Exception):  # noqa: N818 - a signal of ours, not an error
    pass


def interrupt(_: LoadProgress) -> None:
    raise Interrupted


@pytest.mark.parametrize("processes_from", [0, NEVER], ids=["processes", "threads"])
def test_one_run_may_load_every_file_and_the_lead_ends_the_load(
    services: Services,
    employees: TableMapping,
    export: WrittenExport,
    connection: Connection,
    helping: Helping,
    aside_from: int,
    processes_from: int,
) -> None:
    helped: list[HelpReport] = []
    report = load(
        services,
        employees,
        export.location,
        aside_from=aside_from,
        on_lead=lambda lead: helped.append(helping(lead, processes_from=processes_from)),
    )
    assert [(each.files, each.outcome) for each in helped] == [(FILES, NOTHING_LEFT)]
    assert (report.files, report.items, report.applied, report.stale) == (FILES, ITEMS, ITEMS, 0)
    assert view(connection) == WHOLE
    assert leftovers(connection) == 0


def test_several_runs_share_the_files_and_none_is_loaded_twice(
    services: Services,
    employees: TableMapping,
    export: WrittenExport,
    connection: Connection,
    helping: Helping,
    aside_from: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every worker waits after its first file until all have loaded one, so that each run has a share."""
    together, waited = threading.Barrier(3, timeout=60), threading.local()
    loading = FileLoader.load

    def load_and_wait(loader: FileLoader, *arguments: Any) -> loads.FileCounts | None:  # noqa: ANN401 - load's own
        counts = loading(loader, *arguments)
        if counts is not None and not getattr(waited, "yes", False):
            waited.yes = True
            together.wait()
        return counts

    monkeypatch.setattr(FileLoader, "load", load_and_wait)
    helped: list[HelpReport] = []
    told: list[LoadProgress] = []

    def launch(lead: Lead) -> None:
        for _ in range(2):
            threading.Thread(target=lambda: helped.append(helping(lead, workers=1))).start()

    report = load(
        services,
        employees,
        export.location,
        workers=1,
        aside_from=aside_from,
        processes_from=NEVER,
        on_lead=launch,
        on_progress=told.append,
    )
    while len(helped) < 2:
        time.sleep(0.01)
    assert all(each.files for each in helped)
    assert sum(each.files for each in helped) < FILES
    assert (report.applied, report.stale, report.files_resumed) == (ITEMS, 0, 0)
    assert (told[0].files_done, told[-1].files_done, told[-1].rows_done) == (0, FILES, ITEMS)
    assert connection.execute("SELECT count(*) FROM replication.export_files").fetchone() == (FILES,)
    assert view(connection) == WHOLE


def test_a_file_that_another_run_leaves_undone_is_loaded_by_the_lead(
    services: Services, employees: TableMapping, export: WrittenExport, connection: Connection, aside_from: int
) -> None:
    """A run dies in the middle of a file, as the server sees it: its connection goes, and the file is free."""
    dying = services.connect("test dying run")
    told: list[LoadProgress] = []

    def take_a_file(lead: Lead) -> None:
        dying.execute("BEGIN")
        take_part(dying, employees.name, lead, "merge" if aside_from else "aside")
        assert loads.claim_file(dying, lead.export_id, key_of(export, 3))

    def die_at_last(progress: LoadProgress) -> None:
        told.append(progress)
        if progress.files_done == FILES - 1:
            dying.close()

    report = load(
        services,
        employees,
        export.location,
        aside_from=aside_from,
        processes_from=NEVER,
        on_lead=take_a_file,
        on_progress=die_at_last,
    )
    assert dying.closed
    assert FILES - 1 in [progress.files_done for progress in told]
    assert (report.applied, report.stale) == (ITEMS, 0)
    assert view(connection) == WHOLE


def key_of(export: WrittenExport, number: int) -> str:
    """A file's key as the manifest of a folder has it."""
    location = Path(export.location.removeprefix("file://"))
    folder = next(parent for parent in location.parents if (parent / export.data_keys[number]).exists())
    return str(folder / export.data_keys[number]).lstrip("/")


def test_a_run_that_comes_after_the_end_does_nothing(
    services: Services,
    employees: TableMapping,
    export: WrittenExport,
    connection: Connection,
    helping: Helping,
    aside_from: int,
) -> None:
    leads: list[Lead] = []
    load(services, employees, export.location, aside_from=aside_from, on_lead=leads.append)
    before = connection.execute('SELECT *, xmin FROM replica."Employees" ORDER BY 1').fetchall()
    late = helping(leads[0])
    assert (late.files, late.outcome) == (0, ENDED_BEFORE)
    assert connection.execute('SELECT *, xmin FROM replica."Employees" ORDER BY 1').fetchall() == before


def test_a_run_of_a_load_that_died_does_nothing_for_the_one_that_resumes(
    services: Services, employees: TableMapping, export: WrittenExport, connection: Connection, helping: Helping
) -> None:
    """Not even with the right export number: a lead belongs to a run, not to an export."""
    leads: list[Lead] = []
    with pytest.raises(Interrupted):
        load(services, employees, export.location, on_lead=leads.append, on_progress=interrupt)
    assert helping(leads[0]).outcome == ENDED_BEFORE  # nobody leads
    late: list[HelpReport] = []

    def resume(lead: Lead) -> None:
        leads.append(lead)
        late.append(helping(leads[0]))  # another leads

    load(services, employees, export.location, on_lead=resume)
    assert [(each.files, each.outcome) for each in late] == [(0, ENDED_BEFORE)]
    assert leads[0].export_id == leads[1].export_id
    assert view(connection) == WHOLE


def test_a_session_leads_only_while_it_holds_the_load_lock(
    services: Services, employees: TableMapping, export: WrittenExport, connection: Connection
) -> None:
    with pytest.raises(Interrupted):
        load(services, employees, export.location, on_progress=interrupt)
    connection.execute("UPDATE replication.exports SET status = 'loading'")
    with closing(services.connect("test lead")) as leading:
        loads.lock_table(leading, employees.name)
        lead = take_lead(leading, 1)
        assert led_load(connection, employees.name, lead) is not None
        assert led_load(connection, "another table", lead) is None
        leading.execute("SELECT pg_advisory_unlock(hashtext('dynaurora.load'), hashtext(%s))", [employees.name])
        assert led_load(connection, employees.name, lead) is None


def test_a_run_ends_with_the_load_it_takes_part_in(
    services: Services,
    employees: TableMapping,
    export: WrittenExport,
    connection: Connection,
    helping: Helping,
    aside_from: int,
) -> None:
    """Its lead dies while it is in the middle of a file: that file is rolled back, and the run says why it ended."""
    helped: list[HelpReport] = []
    begun, gone = threading.Event(), threading.Event()

    def slowly(progress: LoadProgress) -> None:
        if progress.files_done:
            begun.set()
            gone.wait(30)

    def launch(lead: Lead) -> None:
        helper = threading.Thread(target=lambda: helped.append(helping(lead, workers=1, on_progress=slowly)))
        helpers.append(helper)
        helper.start()
        begun.wait(30)

    helpers: list[threading.Thread] = []
    with pytest.raises(Interrupted):
        load(services, employees, export.location, aside_from=aside_from, on_lead=launch, on_progress=interrupt)
    gone.set()
    helpers[0].join()
    assert helped[0].outcome == ENDED_MEANWHILE
    marked = connection.execute("SELECT count(*) FROM replication.export_files").fetchone()
    assert 0 < helped[0].files < FILES
    assert marked == (helped[0].files,)
    report = load(services, employees, export.location, aside_from=aside_from)
    assert report.files_resumed == helped[0].files
    assert view(connection) == WHOLE


def changed(mapping: TableMapping) -> TableMapping:
    (target,) = mapping.targets
    columns = tuple(replace(c, default="none") if c.name == "Department" else c for c in target.columns)
    return replace(mapping, targets=(replace(target, columns=columns),))


def test_who_takes_the_table_next_waits_for_files_in_work_and_discards_them(
    services: Services, employees: TableMapping, export: WrittenExport, connection: Connection
) -> None:
    """A run whose lead is gone commits a file of the old mapping: that file is discarded with the rest, not kept."""
    leads: list[Lead] = []
    with closing(services.connect("test orphan")) as orphan:

        def leave_behind(lead: Lead) -> None:
            leads.append(lead)
            orphan.execute("BEGIN")
            take_part(orphan, employees.name, lead, "aside")

        with pytest.raises(Interrupted):
            load(
                services,
                employees,
                export.location,
                aside_from=0,
                on_lead=leave_behind,
                on_progress=interrupt,
            )
        reports: list[LoadReport] = []
        next_load = threading.Thread(
            target=lambda: reports.append(load(services, changed(employees), export.location, aside_from=0))
        )
        next_load.start()
        waiting = "SELECT FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not connection.execute(waiting).fetchall():
            assert next_load.is_alive()
        assert leftovers(connection) == 1  # it is still there, and takes the orphan's rows
        build = f"_load_{leads[0].export_id}_0"
        row = sql.SQL('INSERT INTO replica.{} ("Id", "Department") VALUES (-1, \'old\')').format(sql.Identifier(build))
        orphan.execute(row)
        loads.mark_file(orphan, leads[0].export_id, key_of(export, 0), loads.FileCounts(1, 1))
        orphan.execute("COMMIT")
        next_load.join()
        with orphan.transaction(), pytest.raises(LoadEndedError):
            take_part(orphan, employees.name, leads[0], "aside")
    assert (reports[0].applied, reports[0].files_resumed, reports[0].strategy) == (ITEMS, 0, "aside")
    assert view(connection) == {n: (name, "none") for n, (name, _) in WHOLE.items()}


def test_a_load_that_turns_to_merging_takes_no_file_from_runs_that_build_aside(
    services: Services,
    employees: TableMapping,
    export: WrittenExport,
    connection: Connection,
    helping: Helping,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key cannot be built, so the load begins again and merges; another run still has the old tables' names."""

    def refuse(*_: object, **_options: object) -> None:
        raise DataError("building the primary key: a key is too long")

    monkeypatch.setattr(build_indexes, "build", refuse)
    (file, *_) = read_manifest(services.store(export.location), export.location, expected_table=None).files
    strategies: list[str] = []
    late: list[HelpReport] = []
    works: list[LoadWork] = []

    def launch(lead: Lead) -> None:
        found = led_load(connection, employees.name, lead)
        assert found is not None
        strategies.append(found.strategy)
        position, builds = snapshot_position(EXPORT_TIME), ((f"_load_{lead.export_id}_0",),)
        works.append(LoadWork(services, employees, "", export.location, position, lead, builds))
        if found.strategy == "merge":
            with pytest.raises(LoadEndedError):
                FileLoader(works[0]).load(connection, file, lambda _lines, _size: None)
            late.append(helping(lead))

    report = load(services, employees, export.location, aside_from=0, processes_from=NEVER, on_lead=launch)
    assert strategies == ["aside", "merge"]
    assert late[0].files == FILES
    assert (report.strategy, report.applied) == ("merge", ITEMS)
    assert view(connection) == WHOLE


def test_a_run_with_another_mapping_loads_nothing_and_says_so(
    services: Services, employees: TableMapping, export: WrittenExport, connection: Connection, helping: Helping
) -> None:
    def launch(lead: Lead) -> None:
        with pytest.raises(ConfigurationError, match="this run reads another mapping than the load uses"):
            helping(lead, changed(employees))

    load(services, employees, export.location, on_lead=launch)
    assert view(connection) == WHOLE


def help_to_be_killed(begun: Event, services: Services, mapping: TableMapping, lead: Lead) -> None:
    def slowly(progress: LoadProgress) -> None:
        if progress.files_done:
            begun.set()
            time.sleep(0.1)

    help_load(services, mapping, lead, workers=1, processes_from=NEVER, on_progress=slowly)


def test_a_load_continues_when_a_run_that_shares_it_is_killed(
    services: Services, employees: TableMapping, export: WrittenExport, connection: Connection, aside_from: int
) -> None:
    def launch(lead: Lead) -> None:
        begun = CHILDREN.Event()
        helper = CHILDREN.Process(target=help_to_be_killed, args=(begun, services, employees, lead))
        helper.start()
        assert begun.wait(60)
        helper.kill()
        helper.join()

    report = load(services, employees, export.location, aside_from=aside_from, processes_from=NEVER, on_lead=launch)
    assert (report.applied, report.stale) == (ITEMS, 0)
    assert view(connection) == WHOLE
    assert leftovers(connection) == 0


def load_to_be_killed(
    told: SendConnection, services: Services, mapping: TableMapping, location: str, aside_from: int
) -> None:
    load(
        services,
        mapping,
        location,
        workers=1,
        aside_from=aside_from,
        processes_from=NEVER,
        on_lead=told.send,
        on_progress=lambda _: time.sleep(0.2),
    )


def test_a_load_that_is_killed_ends_the_runs_that_share_it_and_resumes(
    services: Services,
    employees: TableMapping,
    export: WrittenExport,
    connection: Connection,
    helping: Helping,
    aside_from: int,
) -> None:
    ours, theirs = CHILDREN.Pipe(duplex=False)
    lead_run = CHILDREN.Process(
        target=load_to_be_killed, args=(theirs, services, employees, export.location, aside_from)
    )
    lead_run.start()
    assert ours.poll(60)
    lead: Lead = ours.recv()

    def kill_it(progress: LoadProgress) -> None:
        if progress.files_done > 2 and lead_run.is_alive():
            lead_run.kill()
            lead_run.join()
            while led_load(connection, employees.name, lead):
                time.sleep(0.01)

    helped = helping(lead, workers=1, on_progress=kill_it)
    assert helped.outcome == ENDED_MEANWHILE
    again: list[HelpReport] = []
    report = load(
        services,
        employees,
        export.location,
        aside_from=aside_from,
        processes_from=NEVER,
        on_lead=lambda lead: again.append(helping(lead)),
    )
    assert 2 < report.files_resumed < FILES
    assert again[0].files == FILES - report.files_resumed
    assert view(connection) == WHOLE
    assert leftovers(connection) == 0


def test_reconciliations_and_discarding_wait_for_files_in_work_too(
    services: Services, employees: TableMapping, export: WrittenExport, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does whoever else takes the table, but not forever."""
    monkeypatch.setattr(load_lead, "WAIT_SECONDS", 1)
    with closing(services.connect("test orphan")) as orphan, closing(services.connect("test next")) as following:

        def leave_behind(lead: Lead) -> None:
            orphan.execute("BEGIN")
            take_part(orphan, employees.name, lead, "merge")

        with pytest.raises(Interrupted):
            load(services, employees, export.location, on_lead=leave_behind, on_progress=interrupt)
        with pytest.raises(TransientError, match="files that a load of this table is loading"):
            loads.keep_loads_out(following, employees.name)
        with pytest.raises(TransientError, match="files that a load of this table is loading"):
            build_aside.discard(following, [1], employees.name)
        orphan.execute("ROLLBACK")
        loads.keep_loads_out(following, employees.name)
