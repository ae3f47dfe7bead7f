"""Targets with every kind of index hold what the same targets without any hold: after the stream, loads and a purge."""

from __future__ import annotations

import random
import time
from contextlib import closing
from datetime import timedelta
from typing import Any

from psycopg import sql

from pipeline.aurora.rows import purge
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.model.mapping import TableMapping
from pipeline.jobs.load.load import load
from pipeline.jobs.replicate import Replicator
from pipeline.jobs.services import Services
from tests.dynamodb.export_fixture import EXPORT_TIME, ExportFactory, Layout
from tests.jobs.conftest import record

COLUMNS = """\
name: {name}
source: {{table: Employees, key: {{Id: N}}}}
targets:
  {target}:
    primary_key: [Id]
    columns:
      Id: {{attribute: Id, type: bigint}}
      Name: {{attribute: empName, type: text}}
      tags: {{attribute: tags, type: "text[]"}}
{indexes}  {target}Lines:
    parent: {target}
    explode: lines
    element: {{line: integer}}
    columns:
      sku: {{attribute: sku, type: text}}
{of_child}"""
INDEXES = """\
    indexes:
      - {columns: [Name, {column: Id, order: desc}]}
      - {columns: [Id, Name], unique: true}
      - {columns: [tags], method: gin}
      - {columns: [attributes, {path: attributes.lines}], method: gin}
      - {columns: [Id], method: brin}
      - {columns: [{path: "attributes.lines[0].sku"}]}
      - {columns: [Id], where: {Name: [a, b], tags: {not: null}}}
      - {columns: [Name], where: {tags: null}}
"""
OF_CHILD = "    indexes: [{columns: [sku, line, Id], unique: true}, {columns: [sku], where: {sku: {not: null}}}]\n"
KEYS = 40


def mapping(name: str, target: str, indexes: str = "", of_child: str = "") -> TableMapping:
    return read_mapping(COLUMNS.format(name=name, target=target, indexes=indexes, of_child=of_child), f"{name}.yaml")


def attributes(choose: random.Random) -> dict[str, Any]:
    lines = [{"M": {"sku": {"S": choose.choice("xyz")}}} for _ in range(choose.randrange(4))]
    made: dict[str, Any] = {"empName": {"S": choose.choice(["a", "b", "c"])}, "lines": {"L": lines}}
    return made | ({"tags": {"SS": choose.sample(["p", "q", "r"], 2)}} if choose.random() < 0.6 else {})


def stored(connection: Connection, table: str) -> list[tuple[Any, ...]]:
    query = sql.SQL("SELECT to_jsonb(t) FROM {} AS t ORDER BY 1").format(sql.Identifier("replica", table))
    return connection.execute(query).fetchall()


def test_indexes_change_nothing_that_is_stored(services: Services, exports: ExportFactory) -> None:
    indexed, plain = mapping("indexed", "Indexed", INDEXES, OF_CHILD), mapping("plain", "Plain")
    choose, sequence = random.Random(5), 0
    with (
        closing(services.connect("test")) as connection,
        closing(Replicator([indexed], lambda: services.connect("test"), writer="indexed")) as one_with,
        closing(Replicator([plain], lambda: services.connect("test"), writer="plain")) as one_without,
    ):
        migrate(connection, [indexed, plain])
        for turn in range(4):
            for _ in range(15):
                records: list[dict[str, Any]] = []
                for number in choose.sample(range(KEYS), 12):
                    sequence += 1
                    at = EXPORT_TIME.timestamp() + choose.choice([-7200, 60])
                    if choose.random() < 0.25:
                        records.append(record(number, sequence, "REMOVE", at=at))
                    else:
                        records.append(record(number, sequence, "MODIFY", at=at, **attributes(choose)))
                for replicator in (one_with, one_without):
                    replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)
            items = [{"Id": {"N": str(number)}, **attributes(choose)} for number in range(0, KEYS, 2)]
            at = EXPORT_TIME + timedelta(minutes=turn)
            export = exports.full(items, Layout(files=2, empty_files=0), export_time=at)
            for one in (indexed, plain):
                assert load(services, one, export.location).rejected == 0
        for one in (indexed, plain):
            assert purge.purge_chunk(connection, one.targets[0], one.name, EXPORT_TIME + timedelta(hours=1)) > 0
        assert stored(connection, "Indexed") == stored(connection, "Plain")
        assert len(stored(connection, "IndexedLines")) > KEYS / 2
        assert stored(connection, "IndexedLines") == stored(connection, "PlainLines")
        by_scan = connection.execute('SELECT count(*) FROM public."Indexed" WHERE "Name" = \'a\'').fetchone()
        connection.execute("SET enable_seqscan = off")
        assert connection.execute('SELECT count(*) FROM public."Indexed" WHERE "Name" = \'a\'').fetchone() == by_scan
