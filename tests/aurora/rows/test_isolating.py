"""Rows that PostgreSQL refuses: one statement finds the same rows as halving does, for the same reasons."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pipeline.aurora.bookkeeping.watermarks import Mark
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.batch import BatchWriter
from pipeline.aurora.rows.isolating import judging, store_isolating
from pipeline.aurora.rows.staging import Staging
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.change import Change
from pipeline.core.ordering import snapshot_position
from pipeline.core.streams.stream_records import StreamDecoder
from tests.dynamodb.export_fixture import EXPORT_TIME
from tests.wire import Wire

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.errors import DataError
    from pipeline.core.model.change import Row

TYPES = [
    "smallint",
    "bigint",
    "numeric(5,2)",
    "numeric",
    "double precision",
    "boolean",
    "text",
    "varchar(4)",
    "uuid",
    "date",
    "timestamptz",
    "bytea",
    "jsonb",
    "text[]",
    "numeric[]",
    "bytea[]",
]
COLUMNS = "".join(f'      c{i}: {{attribute: a{i}, type: "{name}"}}\n' for i, name in enumerate(TYPES))
MAPPING = read_mapping(
    "name: things\nsource: {table: Things, key: {Id: N}}\ntargets:\n  Things:\n    primary_key: [Id]\n    columns:\n"
    "      Id: {attribute: Id, type: integer}\n" + COLUMNS + "    unmapped: attributes\n",
    "things.yaml",
)
(TARGET,) = MAPPING.targets
DEEP = "[" * 50_000 + "]" * 50_000
# None with U+0000, which decoding rejects.
TEXTS = st.none() | st.sampled_from(
    [
        *("1", "99999", "1.005", "1e400", "1e-400", "", "t", "long text", "{}", "{1,2}", "{{1},{2,3}}", "[1"),
        *('"\\u0000"', "{NULL}", "2026-02-30", "294277-01-01 00:00Z", "5874898-01-01", "infinity", "\\x0", "\\xff"),
        *("1" * 140_000, "3b241101-e2bb-4255-8caf-4136c566a962", "null", '{"a": 1e400}', '{"a": 1e200000}', DEEP),
        'a"b\\c',
    ]
)
# Mostly NULL, so that not every row is refused at its first columns.
ROWS = st.lists(
    st.tuples(*[st.none() | st.none() | st.none() | TEXTS for _ in (*TYPES, "unmapped")]), min_size=1, max_size=12
)
Refused = list[tuple[int, str]]


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test")) as opened:
        migrate(opened, [MAPPING])
        yield opened


def both_ways(
    connection: Connection, rows: Sequence[Row], run: Callable[[Callable[[Row, DataError], None], bool], int]
) -> tuple[tuple[int, Refused], tuple[int, Refused]]:
    """Run with and without judging, each in a transaction that is rolled back."""

    def once(judged: bool) -> tuple[int, Refused]:
        refused: Refused = []
        with connection.transaction(force_rollback=True):
            taken = run(lambda row, error: refused.append((int(row[0] or 0), error.message)), judged)
        return taken, sorted(refused)

    assert rows
    return once(True), once(False)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
@example(rows=[(*[None] * 4, "1e-400", *[None] * 12)] * 3)
@example(rows=[(*[None] * 12, DEEP, *[None] * 4), (*[None] * 4, "1e-400", *[None] * 12)])
def test_copied_rows_that_are_refused_are_those_that_halving_finds(
    connection: Connection, rows: list[tuple[str | None, ...]]
) -> None:
    numbered: list[Row] = [(str(number), *row) for number, row in enumerate(rows)]

    def run(refuse: Callable[[Row, DataError], None], judged: bool) -> int:
        staging = Staging.temporary(connection, TARGET)

        def store(some: Sequence[Row]) -> int:
            staging.copy(connection, [some])
            return len(some)

        def judge(some: Sequence[Row]) -> dict[int, DataError]:
            return staging.judge(connection, some)

        return store_isolating(connection, numbered, store, refuse, judge if judged else None)

    fast, general = both_ways(connection, numbered, run)
    assert fast == general


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS)
def test_changes_that_are_refused_are_those_that_halving_finds(
    connection: Connection, rows: list[tuple[str | None, ...]]
) -> None:
    statement, position = ApplyStatement(TARGET, MAPPING.name, MAPPING.table), snapshot_position(EXPORT_TIME)
    numbered: list[Row] = [(str(number), *row) for number, row in enumerate(rows)]
    changes = [Change((row[0] or "",), row, position) for row in numbered]

    def run(refuse: Callable[[Row, DataError], None], judged: bool) -> int:
        def store(some: Sequence[Change]) -> int:
            with translating("applying"):
                return statement.apply(connection, some)[0]

        def refuse_change(change: Change, error: DataError) -> None:
            assert change.row
            refuse(change.row, error)

        judge = judging(connection, statement, "applying") if judged else None
        return store_isolating(connection, changes, store, refuse_change, judge)

    fast, general = both_ways(connection, numbered, run)
    assert fast == general


def test_a_batch_that_postgresql_refuses_whole_costs_few_round_trips(connection: Connection) -> None:
    decoder, label = StreamDecoder(MAPPING), "2026-05-14T11:14:20.608"
    records = [
        {
            "eventName": "INSERT",
            "dynamodb": {
                "ApproximateCreationDateTime": 1_780_000_000,
                "Keys": {"Id": {"N": str(number)}},
                "NewImage": {"Id": {"N": str(number)}, "a4": {"N": "1e-400"}},
                "SequenceNumber": f"{number:021}",
            },
        }
        for number in range(1, 101)
    ]
    batch = decoder.decode(records, label)  # type: ignore[arg-type]
    mark = Mark(MAPPING.name, "w", label, "1", EXPORT_TIME, len(records), 0, 0)
    with Wire(connection) as wire:
        result = BatchWriter(MAPPING).write(connection, batch, records, mark)  # type: ignore[arg-type]
    assert result.rejected == 100
    assert wire.round_trips <= 15
