"""The SQL rule against the Python rule: generated pairs, thousands in a query, decided by a real PostgreSQL."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from pipeline.aurora.bookkeeping import bookkeeping, losses, proofs
from pipeline.aurora.compare import reconciliations
from pipeline.aurora.rows.ordering_sql import admits_new_key, supersedes
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core import ordering
from pipeline.core.ordering import Position, accepts
from pipeline.core.past.losses import Proof
from pipeline.core.streams.positions import stream_version

Pair = tuple[Position, Position]

EPOCH = datetime(2024, 5, 14, 11, 14, 20, tzinfo=UTC)
LABELS = ("2024-05-14T11:14:20.608", "2024-05-14T11:14:20.609", "2031-01-01T00:00:00.000")
MAPPING = "a'b\"c"  # a name that must be quoted

PAIRS = sql.SQL(
    "SELECT {rule} FROM unnest(%s::numeric[], %s::timestamptz[], %s::numeric[], %s::timestamptz[])"
    " WITH ORDINALITY AS p(cv, ca, sv, sa, n),"
    ' LATERAL (SELECT cv AS "_version", ca AS "_as_of") AS candidate,'
    ' LATERAL (SELECT sv AS "_version", sa AS "_as_of") AS row_now ORDER BY n'
).format(rule=supersedes("candidate", "row_now"))

NEW_KEYS = sql.SQL(
    'SELECT {rule} FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS candidate("_as_of", n) ORDER BY n'
).format(rule=admits_new_key("candidate", MAPPING))

PROVEN = (
    "SELECT COALESCE(time <@ (SELECT proven FROM replication.tables), false)"
    " FROM unnest(%s::timestamptz[]) WITH ORDINALITY AS u(time, n) ORDER BY n"
)


@pytest.fixture
def connection(database: str) -> Iterator[Connection]:
    with connect(database, application_name="test") as opened:
        yield opened


def decide_in_sql(connection: Connection, pairs: list[Pair]) -> list[bool]:
    candidates, stored = zip(*pairs, strict=True)
    rows = connection.execute(
        PAIRS,
        [
            [c.version for c in candidates],
            [c.as_of for c in candidates],
            [s.version for s in stored],
            [s.as_of for s in stored],
        ],
    )
    return [decision for (decision,) in rows]


def generated_position(source: random.Random) -> Position:
    """From small ranges, so that equal times, equal versions and neighbours are common; every length of number."""
    if source.random() < 0.4:
        return Position(EPOCH + timedelta(microseconds=source.choice([0, 1, 999_999, 1_000_000, 1_000_001])))
    digits = source.randint(21, 40)
    number = source.choice([10 ** (digits - 1), 10**digits - 1, 10 ** (digits - 1) + source.randrange(3)])
    version = stream_version(source.choice(LABELS), str(number))
    return Position(EPOCH + timedelta(seconds=source.randint(-1, 2)), version)


@pytest.mark.parametrize("seed", range(5))
def test_both_rules_decide_alike_on_thousands_of_pairs(connection: Connection, seed: int) -> None:
    source = random.Random(seed)
    known = [generated_position(source) for _ in range(150)]
    pairs = [(source.choice(known), source.choice(known)) for _ in range(5_000)]
    expected = [ordering.supersedes(candidate, stored) for candidate, stored in pairs]
    assert decide_in_sql(connection, pairs) == expected
    kinds = {(c.streamed, s.streamed, decision) for (c, s), decision in zip(pairs, expected, strict=True)}
    assert len(kinds) == 8  # every pair of kinds, decided either way


positions = st.builds(
    Position,
    st.datetimes(datetime(2012, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001 - bounds are naive
    st.none() | st.builds(stream_version, st.sampled_from(LABELS), st.integers(0, 10**40 - 1).map(str)),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(known=st.lists(positions, min_size=1, max_size=12))
def test_both_rules_decide_alike_on_every_pair_of_any_states(connection: Connection, known: list[Position]) -> None:
    pairs = [(candidate, stored) for candidate in known for stored in known]
    assert decide_in_sql(connection, pairs) == [ordering.supersedes(*pair) for pair in pairs]


@pytest.mark.parametrize("registered", [True, False], ids=["registered", "not registered"])
@pytest.mark.parametrize("purged", [None, EPOCH, EPOCH + timedelta(microseconds=1)], ids=["never", "second", "finer"])
def test_both_rules_admit_the_same_new_keys(connection: Connection, registered: bool, purged: datetime | None) -> None:
    bookkeeping.install(connection)
    bookkeeping.register_table(connection, MAPPING if registered else "other", "Source")
    connection.execute("UPDATE replication.tables SET purged_through = %s", [purged])
    source = random.Random(7)
    candidates = [generated_position(source) for _ in range(2_000)]
    decided = [decision for (decision,) in connection.execute(NEW_KEYS, [[c.as_of for c in candidates]])]
    purged_through = purged if registered else None
    assert decided == [accepts(candidate, None, purged_through) for candidate in candidates]


@pytest.mark.parametrize("seed", range(12))
def test_sql_and_a_tick_agree_on_what_is_proven(connection: Connection, seed: int) -> None:
    """Catch-ups whose ranges meet, overlap or lie apart, and reconciliations, clean or not."""
    source, margin = random.Random(seed), timedelta(seconds=2)
    bookkeeping.install(connection)
    bookkeeping.register_table(connection, MAPPING, "Source")
    covered: list[tuple[datetime, datetime]] = []
    for _ in range(source.randint(0, 6)):
        since = EPOCH + timedelta(seconds=source.randint(0, 40))
        until = since + timedelta(seconds=source.randint(1, 12))
        proofs.prove_caught_up(connection, MAPPING, since, until, margin)
        losses.note_caught_up(connection, MAPPING, since, until)
        covered.append((since, until))
    reconciled: datetime | None = None
    for undecided in source.choices([0, 0, 1], k=source.randint(0, 2)):
        as_of = EPOCH + timedelta(seconds=source.randint(0, 30))
        run = reconciliations.begin(connection, MAPPING, snapshot=f"{as_of}", snapshot_time=as_of, as_of=as_of)
        reconciliations.finish(connection, run.id, undecided=undecided)
        reconciled = max(reconciled or as_of, as_of) if not undecided else reconciled
    times = [EPOCH + timedelta(seconds=second / 2) for second in range(-4, 110)]
    decided = [decision for (decision,) in connection.execute(PROVEN, [times])]
    proof = Proof.of(covered, reconciled)
    assert decided == [proof.shows(time, time, margin) for time in times]
