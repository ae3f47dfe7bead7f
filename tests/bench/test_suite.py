"""The benchmark's own checks: its reference against the items, what it calls wrong, its ratios, its network."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pipeline.local.postgres import PostgresServer
from tests.bench import against, contestant, report, results
from tests.bench.again_race import Again, AgainRace
from tests.bench.apply_race import ApplyRace, Scale
from tests.bench.contest import Spec
from tests.bench.contestant import Measurement
from tests.bench.export import generate
from tests.bench.history import History
from tests.bench.items import Item, items
from tests.bench.load_race import LoadRace, Sizes
from tests.bench.network import Network
from tests.bench.reference import copy_line, expected, holds_nul, shown
from tests.bench.rounds import EXACT, Entry, Run, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import CHILDREN, EMBEDDINGS, NARROW, STAFF, WIDE, Shape


def quiet(_: str) -> None:
    """Report progress to nobody."""


def test_the_reference_holds_every_value_of_the_items(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    """Read back through psycopg's own types, not through text."""
    made = [item for part in range(2) for item in items(WIDE, 1100, part, 2)]
    text = tmp_path / "rows.tsv"
    text.write_text("".join(copy_line(WIDE, item) for item in made), encoding="utf-8", newline="")
    copy = f"\\copy wide FROM '{text}'"
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute(WIDE.create("wide").encode())
        subprocess.run([postgres.psql_path, "-X", "-q", "-v", "ON_ERROR_STOP=1", database, "-c", copy], check=True)
        columns = [
            f"{name}::text" if f.type == "jsonb" else name for name, f in zip(WIDE.columns, WIDE.fields, strict=True)
        ]
        rows = {row[0]: row for row in connection.execute(f"SELECT {', '.join(columns)} FROM wide".encode())}
    assert len(rows) == 1100
    for item in made:
        stored = rows[item["pk"]["S"]]
        for field, value in zip(WIDE.fields, stored, strict=True):
            assert shown(field, value) == expected(field, item), (item["pk"], field.column)


def test_items_hold_what_goes_wrong_elsewhere() -> None:
    made = list(items(WIDE, 10_000, 0, 1))
    assert sum(holds_nul(item["descr"]) for item in made) == 1
    assert max(len(item["big38"]["N"].strip("-").replace(".", "").lstrip("0")) for item in made) == 38
    assert len({tuple(item) for item in made}) > 16
    assert len({item["pk"]["S"] for item in made}) == len(made)
    size = sum(len(json.dumps({"Item": item}, separators=(",", ":"))) for item in made) / len(made)
    assert 1000 < size < 1200


def test_a_load_is_judged_by_what_the_table_shows(postgres: PostgresServer, tmp_path: Path) -> None:
    """One changed value is reported, with its kind."""
    race = LoadRace(BenchServer(postgres), tmp_path, "narrow", Sizes(500, 500, 500))
    data = generate(tmp_path, "narrow", 500)
    lines = Path(data.text_path).read_text().splitlines(keepends=True)
    entry = race.limit("copy_indexed", "psql", key_after=False)
    assert entry.run().verdict == EXACT
    Path(data.text_path).write_text("".join([*lines[1:], lines[0].replace("Dept", "Dipt")]))
    assert entry.run().verdict == "wrong: scalar values"


def test_a_load_with_indexes_and_its_rival_have_them_all(postgres: PostgresServer, tmp_path: Path) -> None:
    race = LoadRace(BenchServer(postgres), tmp_path, "narrow-3-indexes", Sizes(500, 0, 0))
    found = race.with_indexes(1, quiet)
    assert {key: outcome.failure or outcome.verdict for key, outcome in found.items()} == {
        "copy_then_index": EXACT,
        "load_2": EXACT,
    }
    parts = {"load-narrow-3-indexes": {"outcomes": [one.to_json() for one in found.values()]}}
    (mine,) = results.ours(parts)
    assert (mine["path"], mine["case"]) == ("load", "narrow-3-indexes")
    assert mine["ratio_to_copy_then_index"] > 0


@pytest.mark.parametrize("name", ["children", "embeddings"])
def test_a_load_of_children_and_of_embeddings_is_judged_by_all_its_tables(
    postgres: PostgresServer, tmp_path: Path, name: str
) -> None:
    race = LoadRace(BenchServer(postgres), tmp_path, name, Sizes(300, 0, 0))
    found = race.beside_copy(1, quiet)
    assert {key: outcome.failure or outcome.verdict for key, outcome in found.items()} == {
        "copy_then_index": EXACT,
        "load_2": EXACT,
    }
    (mine,) = results.ours({f"load-{name}": {"outcomes": [one.to_json() for one in found.values()]}})
    assert (mine["case"], mine["ratio_to_copy_then_index"] > 0, mine["stored_bytes_per_item"] > 0) == (name, True, True)
    data = generate(tmp_path, name, 300)
    path = Path(data.child_path or data.text_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    limit = race.limit("copy_then_index", "psql", key_after=True).run()
    wrong = "count, scalar values of the children" if name == "children" else "count, scalar values, nested values"
    assert limit.verdict.startswith("wrong: " + wrong.partition(",")[0])


@pytest.mark.parametrize(("items", "strategy"), [(500, "aside"), (100, "merge")])
def test_a_load_into_a_full_table_is_judged_by_content_and_position(
    postgres: PostgresServer, tmp_path: Path, items: int, strategy: str
) -> None:
    race = AgainRace(BenchServer(postgres), tmp_path, Again("narrow-index", 500, items, strategy, 1))
    found = race.rounds(1, quiet)
    assert {key: outcome.failure or outcome.verdict for key, outcome in found.items()} == {
        "load_2": EXACT,
        "upsert_by_hand": EXACT,
    }
    (mine,) = results.ours({"load-narrow-again": {"outcomes": [one.to_json() for one in found.values()]}})
    assert (mine["path"], mine["case"]) == ("load", "narrow-again")
    assert mine["ratio_to_upsert_by_hand"] > 0
    other = "merge" if strategy == "aside" else "aside"
    race = AgainRace(BenchServer(postgres), tmp_path, Again("narrow-index", 500, items, other, 1))
    assert race.rounds(1, quiet)["load_2"].verdict == f"wrong: {strategy}"


@pytest.mark.parametrize("shape", [NARROW, STAFF, WIDE, CHILDREN], ids=lambda shape: shape.name)
def test_the_history_ends_in_what_it_says(shape: Shape) -> None:
    history = History(100, shape=shape)
    events = [record for _ in range(20) for record in json.loads(history.batch(50))["Records"]]
    table: dict[str, Item] = {json.dumps(history.key(number)): {} for number in range(1, 101)}
    for record in events:
        change = record["dynamodb"]
        key = json.dumps(change["Keys"][shape.key.attribute])
        assert (record["eventName"] == "INSERT") == (key not in table), "the seed's handler takes no other history"
        if record["eventName"] == "REMOVE":
            del table[key]
        else:
            table[key] = change["NewImage"]
            assert change["Keys"].items() <= table[key].items()
    assert len(table) == history.live
    assert all(table.get(json.dumps(history.key(n))) == item for n, item in history.written.items())


@pytest.mark.parametrize("shape", [STAFF, WIDE, CHILDREN, EMBEDDINGS], ids=lambda shape: shape.name)
def test_batches_are_applied_and_compared_with_the_history(
    shape: Shape, postgres: PostgresServer, tmp_path: Path
) -> None:
    scale = Scale({100: 20}, (500,), 0, 0)
    with Network(postgres.url, 0.0) as network:
        race = ApplyRace(BenchServer(postgres), network, tmp_path, shape, scale, quiet)
        (mine,) = [entry for entry in race.batches_of_100() if entry.kind == "ours"]
        found = interleave([mine], 1, quiet)["batch-100"].to_json()
    assert (found["failure"], found["verdict"]) == ("", EXACT)
    (ours,) = results.ours({"apply-it": {"outcomes": [found], "suffix": "-it"}})
    assert (ours["path"], ours["case"]) == ("apply", "batch-100-it")
    assert ours["ratio_client_to_json_loads"] > 1
    assert ours["ratio_handler_to_json_loads"] == pytest.approx(ours["ratio_client_to_json_loads"] - 1, abs=0.002)
    assert ours["json_loads_us_per_item"] < ours["client_us_per_item"]


def test_the_network_delays_and_counts(postgres: PostgresServer) -> None:
    with Network(postgres.url, 5.0) as network:
        with psycopg.connect(network.url_of(postgres.url), autocommit=True) as connection:
            before, began = network.traffic(), time.monotonic()
            for _ in range(10):
                connection.execute("SELECT 1")
            seconds, after = time.monotonic() - began, network.traffic()
        # The end of an earlier connection may still have been on its way.
        assert 10 <= after.round_trips - before.round_trips <= 11
        assert after.bytes_in > before.bytes_in
        assert seconds >= 10 * network.overhead_ms / 1000


def test_one_that_fails_is_told_and_the_others_go_on() -> None:
    spec = Spec("postgresql://127.0.0.1:1/none", options={})

    def fails() -> Run:
        measured = contestant.run(
            "tests.bench.rivals.psql_copy_missing", spec, server_pid=1, python=Path(sys.executable)
        )
        return Run(1, measured, EXACT)

    def works() -> Run:
        return Run(100, contestant.Measurement(2.0, 1.0, 0.5, 10.0, {"more": 3}), EXACT)

    found = interleave([Entry("a", "A", "rival", fails), Entry("b", "B", "ours", works)], 2, quiet)
    assert "psql_copy_missing" in found["a"].failure
    assert found["b"].to_json()["items_per_s"] == 50.0
    outcomes = {"outcomes": [outcome.to_json() for outcome in found.values()]}
    assert [problem.partition(":")[0] for problem in results.problems({"load-narrow": outcomes})] == ["load-narrow, A"]


@pytest.mark.parametrize(("rounds", "runs"), [(1, [1, 1]), (2, [2, 6])])
def test_close_ones_run_more_often_where_there_are_several_rounds(rounds: int, runs: list[int]) -> None:
    measured = contestant.Measurement(2.0, 1.0, 0.5, 10.0)
    once = Entry("a", "A", "rival", lambda: Run(100, measured, EXACT))
    often = Entry("b", "B", "ours", lambda: Run(100, measured, EXACT), times=3)
    found = interleave([once, often], rounds, quiet)
    assert [len(found[key].rates) for key in ("a", "b")] == runs


def outcome(key: str, rate: float, verdict: str = EXACT) -> dict[str, Any]:
    numbers = {"items": 10, "rss_mb": 40.0, "client_us_per_item": 3.0, "server_us_per_item": 2.0, "runs": [rate]}
    named = {"key": key, "label": key, "kind": "ours", "failure": "", "verdict": verdict}
    return {**named, **numbers, "items_per_s": rate}


def test_ratios_are_to_exact_results_alone_and_stand_in_the_report() -> None:
    load = [outcome("load_2", 60.0), outcome("copy_then_index", 100.0), outcome("reconcile_2", 45.0)]
    pandas = [outcome("pandas_copy", 20.0, "wrong: scalar values"), outcome("pandas_to_sql", 5.0)]
    apply = [outcome("batch-100", 900.0), outcome("seed", 3.0), outcome("batch-100-rows-1000000", 720.0)]
    parts = {"load-wide": {"outcomes": [*load, *pandas]}, "apply": {"outcomes": apply, "suffix": ""}}
    ours = {(mine["path"], mine["case"]): mine for mine in results.ours(parts)}
    assert ours["load", "wide"]["ratio_to_copy_then_index"] == 0.6
    assert ours["load", "wide"]["ratio_to_pandas"] == 12.0
    assert ours["reconcile", "wide"]["ratio_to_load"] == 0.75
    assert ours["apply", "batch-100"]["ratio_to_seed"] == 300.0
    assert ours["apply", "batch-100"]["ratio_to_seed_without_select"] is None
    assert ours["apply", "batch-100-rows-1000000"]["ratio_to_100000_rows"] == 0.8
    machine: dict[str, Any] = {"cores": 2, "architecture": "x", "memory_gb": 1, "postgresql": "17", "python": "3"}
    run: dict[str, Any] = {
        "date": "2026-01-02T03:04:05+00:00",
        "rounds": 3,
        "seconds": 60,
        "problems": [],
        "parts": parts,
    }
    run |= {"ours": list(ours.values()), "machine": machine | {"postgresql_settings": {"fsync": "on"}}}
    text = report.document([run, run])
    assert "| load wide | `psql \\copy`, key after | 0.60 | 0.60 |" in text
    assert "**wrong: scalar values**" in text


def test_the_ratio_to_another_checkout_is_of_medians_and_what_was_wrong_is_a_problem() -> None:
    def entry(*rates: float, verdict: str = EXACT) -> Entry:
        left = iter(rates)
        return Entry("load", "load", "ours", lambda: Run(100, Measurement(100 / next(left), 0, 0, 0), verdict), 3)

    compared = against.compared("load", "narrow", [entry(30, 10, 20), entry(50, 40, 30)], 3, quiet)
    assert (compared["ratio_to_other"], compared["problems"]) == (0.5, [])
    wrong = against.compared("load", "narrow", [entry(1), entry(1, verdict="wrong: count")], 1, quiet)
    assert wrong["problems"] == ["load narrow, load, there: wrong: count"]
