"""How a swap affects others: `python -m tests.bench.swap_beside`, two minutes; build/swap-beside.json.

1. A transaction that has read the table stays open for half a minute, while one session reads and another writes every
   50 ms: how long they waited, in total and at most.
2. A transaction elsewhere keeps its id, while 600,000 rows are streamed: how long the swap holds its lock.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from pipeline.aurora.rows import build_aside, build_indexes
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.local.postgres import PostgresServer
from tests.aurora.rows.test_build_aside import MAPPING, begin, fill, write
from tests.bench.contestant import ROOT

HELD_SECONDS, STREAMED_ROWS = 30.0, 600_000
# A statement for one row that took longer than this has waited for somebody.
WAITED_SECONDS = 0.2


def _waits(url: str, statement: Callable[[Connection, int], None], stop: threading.Event, waits: list[float]) -> None:
    with closing(connect(url, application_name="beside")) as connection:
        number = 0
        while not stop.is_set():
            number += 1
            started = time.monotonic()
            statement(connection, number)
            took = time.monotonic() - started
            if took > WAITED_SECONDS:
                waits.append(took)
            time.sleep(0.05)


def _read(connection: Connection, _: int) -> None:
    connection.execute('SELECT FROM public."Orders" WHERE "Id" = 1')


def _write(connection: Connection, number: int) -> None:
    write(connection, 1, "x", number)


def idle_transaction(url: str) -> dict[str, float]:
    """Swap while a transaction that has read the table is idle; returns how long reader and writer waited."""
    reads, writes, stop = list[float](), list[float](), threading.Event()
    beside = [
        threading.Thread(target=_waits, args=(url, _read, stop, reads)),
        threading.Thread(target=_waits, args=(url, _write, stop, writes)),
    ]
    with (
        closing(connect(url, application_name="load")) as connection,
        closing(connect(url, application_name="report")) as report,
    ):
        build = begin(connection)
        fill(connection, build, range(1000))
        build_indexes.build(connection, build)
        copied = build_aside.copy_over(connection, build)
        report.execute("BEGIN")
        report.execute('SELECT FROM public."Orders"')
        for thread in beside:
            thread.start()
        ending = threading.Timer(HELD_SECONDS, lambda: report.execute("COMMIT"))
        ending.start()
        started = time.monotonic()
        build_aside.swap(connection, build, copied, stopped=threading.Event())
        took = time.monotonic() - started
        stop.set()
        for thread in [*beside, ending]:
            thread.join()
    found = {"held_seconds": HELD_SECONDS, "swapped_after_seconds": took}
    for name, waits in (("reader", reads), ("writer", writes)):
        found |= {f"{name}_waited_seconds": sum(waits), f"{name}_waited_at_most_seconds": max(waits, default=0.0)}
    return {name: round(value, 2) for name, value in found.items()}


def held_transaction_id(url: str) -> dict[str, float]:
    """Swap while a transaction elsewhere has an id; returns how long the last pass and the swap held the lock."""
    with (
        closing(connect(url, application_name="load")) as connection,
        closing(connect(url, application_name="elsewhere")) as elsewhere,
    ):
        connection.execute("DELETE FROM replication.exports")
        build = begin(connection)
        build_indexes.build(connection, build)
        elsewhere.execute("BEGIN")
        elsewhere.execute("SELECT pg_current_xact_id()")
        for start in range(0, STREAMED_ROWS, 1000):
            connection.execute(
                'INSERT INTO replica."Orders" ("Id", "Line", "Name", rest, _version, _as_of)'
                " SELECT n, 'a', 'streamed', '{}', n, now() FROM generate_series(%s::int, %s::int) n"
                ' ON CONFLICT ("Id", "Line") DO NOTHING',
                [start, start + 999],
            )
        copied = build_aside.copy_over(connection, build)
        started = time.monotonic()
        build_aside._swap(connection, build, copied)  # without the looks  # pyright: ignore[reportPrivateUsage]
        took = time.monotonic() - started
        elsewhere.execute("COMMIT")
    return {"streamed_rows": STREAMED_ROWS, "locked_seconds": round(took, 2)}


def main() -> int:
    """Measure, print and keep."""
    with tempfile.TemporaryDirectory(prefix="dynaurora-swap-") as name:
        Path(name).chmod(0o711)
        with PostgresServer(Path(name) / "postgres", durable=False) as server:
            with closing(connect(server.url, application_name="bench")) as connection:
                migrate(connection, [MAPPING])
            found = {
                "idle_transaction": idle_transaction(server.url),
                "held_transaction_id": held_transaction_id(server.url),
            }
    (ROOT / "build").mkdir(exist_ok=True)
    (ROOT / "build" / "swap-beside.json").write_text(json.dumps(found, indent=1) + "\n")
    sys.stdout.write(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
