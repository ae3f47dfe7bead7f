"""What each fast way of decoding is worth: loads and batches with it switched off, against all of them, interleaved.

Real loads and batches by one worker, in a process each that has learnt nothing; what is compared is the processor time
of that process, and it is set against both sides' of a whole load or batch. A way that is worth less than a tenth of
every one of these goes.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import connect
from pipeline.core.mapping_files.mapping_file import read_mapping
from tests.bench.contest import Spec
from tests.bench.contestant import OURS_PYTHON, run
from tests.bench.export import generate
from tests.bench.history import History
from tests.bench.items import Item, items
from tests.bench.rounds import EXACT, Entry, Run, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import NARROW, SHAPES, STAFF
from tests.dynamodb.export_fixture import ExportFactory, Layout

ROUNDS = 6
SHOP = """\
name: shop
source: {table: Shop, key: {PK: S, SK: S}}
targets:
  Customers:
    match: {PK: "CUSTOMER#{customer}", SK: PROFILE}
    primary_key: [customer]
    columns:
      customer: {capture: customer, type: bigint}
      name: {attribute: name, type: text}
      city: {attribute: address.city, type: varchar(40), on_error: truncate}
      since: {attribute: since, type: date}
  Orders:
    match: {PK: "CUSTOMER#{customer}", SK: "ORDER#{day}#{order}"}
    primary_key: [customer, day, order]
    columns:
      customer: {capture: customer, type: bigint}
      day: {capture: day, type: date}
      order: {capture: order, type: text}
      status: {attribute: status, type: varchar(20), default: new}
      total: {attribute: total, type: "numeric(12,2)"}
      lines: {attribute: lines, type: jsonb}
"""
"""A single-table design, as in examples/shop: keys take patterns, which no pattern of lines does."""
"""The ways that may be switched off, by what is measured."""
LOADS = {
    "narrow": ("line shape", "strict pattern", "line by line", "patterns", "all"),
    "wide": ("line shape", "strict pattern", "document shapes", "line by line", "one by one", "patterns", "all"),
    "untidy": ("line shape", "strict pattern", "line by line", "patterns", "all"),
    "shop": ("plain code", "code for COPY", "generated code"),
}
_ITEMS = {"narrow": 200_000, "wide": 20_000, "untidy": 200_000, "shop": 60_000}


def _shop(count: int) -> Iterator[Item]:
    choose = random.Random(3)
    for number in range(count):
        key = {"PK": {"S": f"CUSTOMER#{number // 4}"}}
        if number % 4 == 0:
            address = {"street": {"S": f"{number} Main St"}, "city": {"S": choose.choice(["Accra", "São Paulo"])}}
            yield {**key, "SK": {"S": "PROFILE"}, "name": {"S": f"Name {number}"}, "address": {"M": address},
                   "since": {"S": f"20{number % 20 + 10}-01-{number % 28 + 1:02}"}}  # fmt: skip
        else:
            lines = [
                {"M": {"sku": {"S": f"SKU-{choose.randint(1, 999)}"}, "quantity": {"N": str(choose.randint(1, 9))}}}
                for _ in range(choose.randint(1, 4))
            ]
            yield {**key, "SK": {"S": f"ORDER#2026-01-{number % 28 + 1:02}#{number}"}, "status": {"S": "paid"},
                   "total": {"N": f"{choose.randint(1, 999)}.{choose.randint(10, 99)}"}, "lines": {"L": lines}}  # fmt: skip


def _untidy(count: int) -> Iterator[Item]:
    """Narrow, as tables become: attributes missing and empty, of another type, names that stand once, escapes."""
    choose = random.Random(4)
    for item in items(NARROW, count, 0, 1):
        kind = choose.randrange(50)
        if kind < 5:
            item["empName"] = {"S": ""}
        elif kind < 8:
            del item["empDepartment"]
        elif kind == 8:
            item[f"once {choose.getrandbits(60)}"] = {"S": "x"}
        elif kind == 9:
            item["empName"] = {"S": 'say "hi"'}
        elif kind == 10:
            item["Id"] = {"N": item["Id"]["N"] + ".0"}
        elif kind < 20:
            item["note"] = {"M": {"text": {"S": "x"}, "number": {"N": str(kind)}}}
        yield item


@dataclass(frozen=True)
class _Load:
    mapping: str
    location: str
    items: int
    relation: str


class _Race:
    def __init__(self, server: BenchServer, folder: Path, *, quick: bool) -> None:
        self._server, self._folder, self._part = server, folder, 10 if quick else 1
        self._sums: dict[str, str] = {}

    def load(self, name: str) -> _Load:
        count = _ITEMS[name] // self._part
        if name in SHAPES:
            shape = SHAPES[name]
            return _Load(shape.mapping, generate(self._folder, name, count).location, count, f'public."{shape.table}"')
        made = {"shop": _shop, "untidy": _untidy}[name](count)
        export = ExportFactory.in_folder(self._folder / f"ways-{name}").full(
            made, Layout(table="Shop" if name == "shop" else "Employees", files=4, empty_files=0)
        )
        relation = 'public."Orders"' if name == "shop" else 'public."Employees"'
        return _Load(SHOP if name == "shop" else NARROW.mapping, export.location, count, relation)

    def loading(self, name: str, load: _Load, off: str) -> Entry:
        def contest() -> Run:
            url = self._server.fresh("bench_ways")
            with closing(connect(url, application_name="bench")) as connection:
                migrate(connection, [read_mapping(load.mapping, "bench.yaml")])
            self._server.settle()
            spec = Spec(url, location=load.location, options={"path": "load", "off": off, "mapping": load.mapping})
            measured = run("tests.bench.ours.one_way", spec, server_pid=self._server.pid, python=OURS_PYTHON)
            return Run(load.items, measured, self._verdict(name, url, load.relation))

        return Entry(off, f"{name} without {off}", "ours", contest)

    def applying(self, off: str) -> Entry:
        batches = 200 // self._part

        def contest() -> Run:
            url, history = self._server.fresh("bench_ways"), History(10_000, shape=STAFF)
            with closing(connect(url, application_name="bench")) as connection:
                migrate(connection, [read_mapping(STAFF.mapping, "bench.yaml")])
            events, mappings = self._folder / "ways.jsonl", self._folder / "tables"
            events.write_bytes(b"\n".join(history.batch(100) for _ in range(batches + 1)))
            mappings.mkdir(exist_ok=True)
            (mappings / "employees.yaml").write_text(STAFF.mapping)
            self._server.settle()
            spec = Spec(url, STAFF.name, location=str(mappings), text_path=str(events),
                        options={"path": "apply", "off": off})  # fmt: skip
            measured = run("tests.bench.ours.one_way", spec, server_pid=self._server.pid, python=OURS_PYTHON)
            return Run(batches * 100, measured, self._verdict("apply", url, 'public."Employees"'))

        return Entry(off, f"apply without {off}", "ours", contest)

    def _verdict(self, name: str, url: str, relation: str) -> str:
        """Whether the table shows what it showed after the first run."""
        query = f"SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)::numeric) FROM {relation} AS t"
        with closing(psycopg.connect(url)) as connection:
            row = connection.execute(query.encode()).fetchone()
        shown = str(row)
        return EXACT if self._sums.setdefault(name, shown) == shown else "wrong: other rows than the first run"


def measure(server: BenchServer, folder: Path, *, quick: bool, say: Say) -> dict[str, Any]:
    """Run every variant; returns what each way is worth."""
    race, rounds = _Race(server, folder, quick=quick), 2 if quick else ROUNDS
    found: dict[str, Any] = {"outcomes": [], "worth": []}
    entries: dict[str, list[Entry]] = {}
    for name, ways in LOADS.items():
        load = race.load(name)
        entries[name] = [race.loading(name, load, off) for off in ("nothing", *ways)]
    with server.synced(on=False):
        entries["apply"] = [race.applying(off) for off in ("nothing", "row function")]
        for name, some in entries.items():
            outcomes = interleave(some, rounds, say)
            whole = outcomes.pop("nothing")
            both = statistics.median(whole.client_us) + statistics.median(whole.server_us)
            for off, outcome in outcomes.items():
                worth = {
                    "measured": name,
                    "off": off,
                    "client_us": round(statistics.median(outcome.client_us), 2),
                    "all_client_us": round(statistics.median(whole.client_us), 2),
                    "both_us": round(both, 2),
                    "worth": round(
                        (statistics.median(outcome.client_us) - statistics.median(whole.client_us)) / both, 3
                    ),
                    "worth_of_least": round((min(outcome.client_us) - min(whole.client_us)) / both, 3),
                    "verdict": outcome.verdict,
                    "failure": outcome.failure,
                }
                found["worth"].append(worth)
                say(
                    f"  {name:8} without {off:16} {worth['client_us']:8.2f} us an item, with {worth['all_client_us']:8.2f}:"
                    f" worth {worth['worth']:6.1%} of both sides' {worth['both_us']} ({worth['worth_of_least']:6.1%} by the least) {outcome.verdict} {outcome.failure}"
                )
    return found
