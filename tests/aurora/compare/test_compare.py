"""Comparing in ranges: each key once, each column by value, one statement for each chunk, for every type of key."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from psycopg import sql

from pipeline.aurora.compare import compare, key_ranges, reconciliations
from pipeline.aurora.compare.candidates import Candidates
from pipeline.aurora.compare.compare import Comparison, compare_keys, marks
from pipeline.aurora.compare.key_ranges import Lane
from pipeline.aurora.rows.staging import Staging
from pipeline.aurora.schema import tables
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.reconcile.compare_ranges import first_stride, next_stride

AS_OF = datetime(2026, 5, 14, tzinfo=UTC)
MAPPING = """
name: things
source: {table: Things, key: {pk: S, sk: N}}
targets:
  Things:
    primary_key: [pk, sk]
    columns:
      pk: {attribute: pk, type: text}
      sk: {attribute: sk, type: "numeric(12,2)"}
      amount: {attribute: amount, type: numeric}
      whole: {attribute: whole, type: integer}
      small: {attribute: small, type: smallint}
      big: {attribute: big, type: bigint}
      ratio: {attribute: ratio, type: double precision}
      paid: {attribute: paid, type: boolean}
      note: {attribute: note, type: text}
      branch: {attribute: branch, type: varchar(9)}
      token: {attribute: token, type: uuid}
      opened: {attribute: opened, type: date}
      moment: {attribute: moment, type: timestamptz}
      scan: {attribute: scan, type: bytea}
      tags: {attribute: tags, type: "text[]"}
      marks: {attribute: marks, type: "numeric[]"}
      blobs: {attribute: blobs, type: "bytea[]"}
      doc: {attribute: doc, type: jsonb}
    unmapped: rest
"""
ROW = {
    "amount": "1.50", "whole": "1", "small": "2", "big": "3", "ratio": "0.5", "paid": "t", "note": "n", "branch": "b",
    "token": "00000000-0000-0000-0000-000000000001", "opened": "2026-01-01", "moment": "2026-01-01 00:00+00",
    "scan": "\\x01", "tags": "{a,b}", "marks": "{1,2.0}", "blobs": '{"\\\\x01"}', "doc": '{"a": 1.0}', "rest": "{}",
}  # fmt: skip
OTHER = {
    "amount": "1.51", "whole": "9", "small": "9", "big": "9", "ratio": "0.25", "paid": "f", "note": "x", "branch": "x",
    "token": "00000000-0000-0000-0000-000000000002", "opened": "2026-01-02", "moment": "2026-01-01 00:00:01+00",
    "scan": "\\x02", "tags": "{a}", "marks": "{1}", "blobs": "{}", "doc": '{"a": 2}', "rest": '{"b": null}',
}  # fmt: skip


@pytest.fixture
def mapping() -> TableMapping:
    return read_mapping(MAPPING, "things.yaml")


@pytest.fixture
def connection(database: str, mapping: TableMapping) -> Generator[Connection]:
    with closing(connect(database, application_name="test")) as opened:
        migrate(opened, [mapping])
        yield opened


@pytest.fixture
def comparison(connection: Connection, mapping: TableMapping) -> Comparison:
    """A run with nothing staged yet."""
    run = reconciliations.begin(connection, mapping.name, snapshot="s", snapshot_time=AS_OF, as_of=AS_OF)
    (target,) = mapping.targets
    staging = Staging(target, sql.Identifier("replica", f"_reconcile_{run.id}_0"))
    candidates = Candidates.of(target, f"reconcile_{run.id}_0")
    staging.create(connection)
    candidates.create(connection)
    return Comparison(run.id, target, staging, candidates, AS_OF)


def store(connection: Connection, comparison: Comparison, keys: list[tuple[str, int]]) -> None:
    """Store the same rows for these keys on both sides."""
    names = tables.identifiers(("pk", "sk", *ROW))
    values = [[*key, *ROW.values()] for key in keys]
    holes = sql.SQL(", ").join(sql.Placeholder() * (len(ROW) + 2))
    into = sql.SQL("INSERT INTO {} ({}) VALUES ({})")
    connection.cursor().executemany(into.format(comparison.staging.name, names, holes), values)
    into = sql.SQL("INSERT INTO {} ({}, _as_of) VALUES ({}, '2026-01-01')")
    connection.cursor().executemany(into.format(tables.storage(comparison.target), names, holes), values)


def left(connection: Connection, comparison: Comparison) -> list[tuple[str, ...]]:
    return [candidate.key for candidate in comparison.candidates.next(connection, after=0, most=10_000)]


def compare_all(connection: Connection, comparison: Comparison) -> int:
    (lane,) = key_ranges.lanes(connection, comparison.run_id, 0) or key_ranges.divide(
        connection, comparison.run_id, 0, []
    )
    return comparison.compare(connection, lane, None)


@pytest.mark.parametrize("column", list(ROW))
def test_a_value_altered_in_any_type_of_column_is_found_and_named(
    connection: Connection, comparison: Comparison, column: str
) -> None:
    store(connection, comparison, [("a", 1), ("b", 2), ("c", 3)])
    storage, name = tables.storage(comparison.target), sql.Identifier(column)
    connection.execute(sql.SQL("UPDATE {} SET {} = %s WHERE pk = 'a'").format(storage, name), [OTHER[column]])
    connection.execute(sql.SQL("UPDATE {} SET {} = NULL WHERE pk = 'b'").format(storage, name))
    assert compare_all(connection, comparison) == 2
    assert left(connection, comparison) == [("a", "1.00"), ("b", "2.00")]
    compared = compare_keys(connection, comparison.target, comparison.staging, [("b", "2"), ("c", "3.0"), ("a", "1")])
    assert [(each.kind, each.columns) for each in compared] == [
        ("different", (column,)), (None, ()), ("different", (column,))
    ]  # fmt: skip


def test_equal_values_written_differently_are_equal(connection: Connection, comparison: Comparison) -> None:
    store(connection, comparison, [("a", 1)])
    connection.execute(
        sql.SQL("UPDATE {} SET amount = 1.5, marks = '{{1.0,2}}', doc = '{{\"a\":1}}', moment = '2026-01-01 01:00+01'")
        .format(tables.storage(comparison.target))
    )  # fmt: skip
    assert compare_all(connection, comparison) == 0


@pytest.mark.parametrize("lanes", [1, 3])
def test_ranges_cover_every_key_once_also_those_of_one_side_alone(
    connection: Connection, comparison: Comparison, lanes: int
) -> None:
    keys = [(chr(97 + number % 26) + "é" * (number % 3), number) for number in range(300)]
    store(connection, comparison, keys)
    staged, stored = comparison.staging.name, tables.storage(comparison.target)
    connection.execute(sql.SQL("DELETE FROM {} WHERE sk % 7 = 0").format(staged))
    connection.execute(sql.SQL("DELETE FROM {} WHERE sk % 11 = 0").format(stored))
    connection.execute(sql.SQL("UPDATE {} SET _deleted = true WHERE sk % 13 = 0").format(stored))
    between = sorted(tuple(map(str, key)) for key in keys)[100:-100:100][: lanes - 1]
    for lane in key_ranges.divide(connection, comparison.run_id, 0, between):
        cuts = sorted((tuple(map(str, key)) for key in keys[:: 300 // 9]), key=lambda key: (key[0], int(key[1])))
        place = lane
        for cut in cuts:
            inside = (place.after is None or order(cut) > order(place.after)) and (
                lane.through is None or order(cut) < order(lane.through)
            )
            if inside:
                comparison.compare(connection, place, cut)
                place = replace(place, after=cut)
        comparison.compare(connection, place, None)
    found = [int(float(number)) for _, number in left(connection, comparison)]
    one_side = {n for n in range(300) if (n % 7 == 0) != (n % 11 == 0 or n % 13 == 0)}
    assert sorted(found) == sorted(one_side)
    assert all(lane.done for lane in key_ranges.lanes(connection, comparison.run_id, 0))


def order(key: tuple[str, ...]) -> tuple[bytes, float]:
    return (key[0].encode(), float(key[1]))


def test_a_killed_chunk_leaves_neither_its_mark_nor_what_it_found(
    connection: Connection, comparison: Comparison
) -> None:
    store(connection, comparison, [("a", 1), ("b", 2)])
    connection.execute(sql.SQL("DELETE FROM {}").format(tables.storage(comparison.target)))
    (lane,) = key_ranges.divide(connection, comparison.run_id, 0, [])
    with connection.transaction(force_rollback=True):
        comparison.compare(connection, lane, ("a", "1"))
    assert key_ranges.lanes(connection, comparison.run_id, 0) == [lane]
    assert left(connection, comparison) == []
    comparison.compare(connection, lane, ("a", "1"))
    (half,) = key_ranges.lanes(connection, comparison.run_id, 0)
    assert (half.after, half.done, left(connection, comparison)) == (("a", "1"), False, [("a", "1.00")])


def test_cuts_lie_inside_the_lane_in_order(connection: Connection, comparison: Comparison) -> None:
    store(connection, comparison, [(f"k{number:04}", number) for number in range(400)])
    relations = [comparison.staging.name, tables.storage(comparison.target)]
    lane = Lane(0, 0, ("k0100", "100"), ("k0300", "300"))
    cuts = key_ranges.cuts(connection, comparison.target, relations, lane, 400)
    assert cuts == sorted(cuts)
    assert len(cuts) > 3
    assert all(("k0100", "100") < cut <= ("k0300", "300.00") for cut in cuts)


def test_a_range_is_read_without_the_rest_of_the_snapshot_or_of_the_table(
    connection: Connection, comparison: Comparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A range that reads all of a table makes the time for all ranges grow with the square of its rows."""
    storage = tables.storage(comparison.target)
    staged = "INSERT INTO {} (pk, sk, note) SELECT 'k' || n % 50, n, 'note ' || n FROM generate_series(1, 20000) AS n"
    connection.execute(sql.SQL(staged + " ORDER BY hashint8(n)").format(comparison.staging.name))
    stored = "INSERT INTO {} (pk, sk, note, _as_of) SELECT pk, sk, note, now() FROM {}"
    connection.execute(sql.SQL(stored).format(storage, comparison.staging.name))
    connection.execute(sql.SQL("ANALYZE {}").format(storage))
    indexes = sql.SQL("SELECT count(*) FROM pg_index WHERE indrelid = {}::regclass").format(
        sql.Literal(comparison.staging.name.as_string())
    )
    comparison.index(connection)
    assert connection.execute(indexes).fetchone() == (0,), "so few that an index costs more"
    monkeypatch.setattr(compare, "INDEX_FROM_BYTES", 1 << 20)
    for _ in range(2):  # a resumed run indexes nothing again
        comparison.index(connection)
    assert connection.execute(indexes).fetchone() == (1,)
    comparison.set_up(connection)
    assert connection.execute("SHOW effective_io_concurrency").fetchone() == ("64",)
    for through in ("k27", "19000"), ("k28", "17"):  # a part of one partition key, and one and a part
        after = ("k27", "17000")
        within = key_ranges.within(comparison.target, after, through)
        query = sql.SQL("EXPLAIN ") + comparison.differing(within)
        parameters = key_ranges.bounds(after, through) | {"as_of": AS_OF}
        plan = "\n".join(line for (line,) in connection.execute(query, parameters))
        assert "Seq Scan" not in plan, plan


def test_a_mark_changes_with_its_row_and_says_when_there_is_none(
    connection: Connection, comparison: Comparison
) -> None:
    store(connection, comparison, [("a", 1)])
    target, keys = comparison.target, [("none", "1"), ("a", "1")]
    absent, before = marks(connection, target, keys)
    assert (absent, bool(before)) == ("", True)
    connection.execute(sql.SQL("UPDATE {} SET note = note").format(tables.storage(target)))
    assert marks(connection, target, keys)[1] not in {"", before}


def test_chunks_are_fitted_to_the_time_they_should_take() -> None:
    assert first_stride(1_000_000, 400) == 40
    assert first_stride(10, 400) == 4_000_000
    assert next_stride(10, 2.0, 2.0) == 10
    assert next_stride(10, 0.001, 2.0) == 40, "grows fourfold at most"
    assert next_stride(10, 4.0, 2.0) == 5
    assert next_stride(1, 60.0, 2.0) == 1
