"""The worth of each fast path of decoding: loads and batches with it switched off, interleaved with complete ones.

These are real loads and batches by one worker, each in a new process that has learnt nothing. The figure is the saving
in that process's processor time, as a share of both sides' time for the whole load or batch. A path that is worth less
than a tenth of every one of these is removed (docs/decisions/0008-fast-decoding.md).
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
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
from tests.bench.rounds import EXACT, Entry, Outcome, Run, Say, interleave
from tests.bench.server import BenchServer
from tests.bench.shapes import NARROW, SHAPES, STAFF
from tests.dynamodb.export_fixture import ExportFactory, Layout

ROUNDS = 4
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
"""A single-table design, as in examples/shop. Its keys are taken apart, so that every line is parsed."""
# What is switched off, for each of the measured paths.
_LOADS = {
    "narrow": ("line templates", "reading unparsed", "all of it"),
    "wide": ("line templates", "document templates", "reading unparsed", "all of it"),
    "untidy": ("line templates", "reading unparsed", "all of it"),
    "shop": ("the written function",),
}
_ITEMS = {"narrow": 200_000, "wide": 30_000, "untidy": 100_000, "shop": 40_000}


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
                   "total": {"N": f"{choose.randint(1, 999)}.{number % 90 + 10}"}, "lines": {"L": lines}}  # fmt: skip


def _untidy(count: int) -> Iterator[Item]:
    """Narrow, as real tables become: attributes missing, empty or of another type, names in one item only, escapes."""
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

    def _load(self, name: str) -> _Load:
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

    def loading(self, name: str, ways: Sequence[str]) -> list[Entry]:
        """Return loads with each of the fast paths switched off, and one with none."""
        load = self._load(name)

        def contest(off: str) -> Run:
            url = self._server.fresh("bench_ways")
            with closing(connect(url, application_name="bench")) as connection:
                migrate(connection, [read_mapping(load.mapping, "bench.yaml")])
            self._server.settle()
            spec = Spec(url, location=load.location, options={"path": "load", "off": off, "mapping": load.mapping})
            measured = run("tests.bench.ours.one_way", spec, server_pid=self._server.pid, python=OURS_PYTHON)
            return Run(load.items, measured, self._verdict(name, url, load.relation))

        return [_entry(name, off, partial(contest, off)) for off in ("nothing", *ways)]

    def applying(self) -> list[Entry]:
        """Return batches of a stream with everything, and without each fast path."""
        batches = 200 // self._part

        def contest(off: str) -> Run:
            url, history = self._server.fresh("bench_ways"), History(10_000, shape=STAFF)
            with closing(connect(url, application_name="bench")) as connection:
                migrate(connection, [read_mapping(STAFF.mapping, "bench.yaml")])
            events, mappings = self._folder / "ways.jsonl", self._folder / "tables"
            events.write_bytes(b"\n".join(history.batch(100) for _ in range(batches + 1)))
            mappings.mkdir(exist_ok=True)
            (mappings / "employees.yaml").write_text(STAFF.mapping)
            self._server.settle()
            options = {"path": "apply", "off": off}
            spec = Spec(url, STAFF.name, location=str(mappings), text_path=str(events), options=options)
            measured = run("tests.bench.ours.one_way", spec, server_pid=self._server.pid, python=OURS_PYTHON)
            return Run(batches * 100, measured, self._verdict("apply", url, 'public."Employees"'))

        return [
            _entry("apply", off, partial(contest, off)) for off in ("nothing", "document forms", "the written function")
        ]

    def _verdict(self, name: str, url: str, relation: str) -> str:
        """Whether the table's rows are the same as after the first run."""
        query = f"SELECT count(*) || ' ' || sum(hashtextextended(t::text, 0)::numeric) FROM {relation} AS t"
        with closing(psycopg.connect(url)) as connection:
            row = connection.execute(query.encode()).fetchone()
        shown = str(row)
        return EXACT if self._sums.setdefault(name, shown) == shown else "wrong: other rows than the first run"


def _entry(name: str, off: str, contest: Callable[[], Run]) -> Entry:
    return Entry(off, f"{name} without {off}", "ours", contest)


def measure(server: BenchServer, folder: Path, *, quick: bool, say: Say) -> dict[str, Any]:
    """Run every variant; returns what each fast path is worth."""
    race, rounds = _Race(server, folder, quick=quick), 2 if quick else ROUNDS
    entries = {name: race.loading(name, ways) for name, ways in _LOADS.items()}
    found: dict[str, Any] = {"outcomes": [], "worth": []}
    with server.synced(on=False):
        for name, some in {**entries, "apply": race.applying()}.items():
            outcomes = interleave(some, rounds, lambda _: None)
            found["outcomes"] += [outcome.to_json() for outcome in outcomes.values()]
            whole = outcomes.pop("nothing")
            for off, outcome in outcomes.items():
                if whole.client_us and outcome.client_us:
                    worth = _worth(whole, outcome)
                    found["worth"].append({"measured": name, "off": off, **worth})
                    say(f"  {name} without {off}: {worth['client_us']} for {worth['all_client_us']} us an item;"
                        f" worth {worth['worth']:.0%} of both sides'")  # fmt: skip
    return found


def _worth(whole: Outcome, without: Outcome) -> dict[str, float]:
    """The saving in the processor time of both sides, by medians."""
    client, less = statistics.median(whole.client_us), statistics.median(without.client_us)
    both = client + statistics.median(whole.server_us)
    return {"client_us": round(less, 2), "all_client_us": round(client, 2), "worth": round((less - client) / both, 3)}
