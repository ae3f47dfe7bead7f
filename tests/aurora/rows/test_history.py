"""Histories in the database: what is written to them, and what their views show."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.aurora.rows import history
from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection, connect
from pipeline.core.mapping_files.mapping_file import read_mapping

if TYPE_CHECKING:
    from collections.abc import Generator

TEXT = """
name: shop
source: {table: Orders, key: {PK: S, SK: N}}
targets:
  Orders:
    primary_key: [customer, number]
    history: {keep: 400d}
    columns:
      customer: {attribute: PK, type: text}
      number: {attribute: SK, type: "numeric(10,2)"}
      state: {attribute: state, type: text}
"""
SHOP = read_mapping(TEXT, "shop.yaml")
(ORDERS,) = SHOP.targets


@pytest.fixture
def connection(database: str) -> Generator[Connection]:
    with closing(connect(database, application_name="test history")) as opened:
        migrate(opened, [SHOP])
        yield opened


def rows(connection: Connection, query: str) -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in connection.execute(query.encode()).fetchall()]


def test_a_key_is_forgotten_in_every_partition_and_in_the_base(connection: Connection) -> None:
    for table in ('replica."Orders_history"', 'replica."_history_base_Orders"'):
        for version, back in ((0, "0 days"), (7, "200 days"), (8, "-200 days")):
            for customer in ("Ada", "Eve"):
                connection.execute(
                    f"INSERT INTO {table} VALUES ('{customer}', 1.5, 'new', '{{}}', {version},"  # noqa: S608
                    f" now() - interval '{back}', false)".encode()
                )
    assert history.forget(connection, ORDERS, ("Ada", "1.50")) == 6
    assert set(rows(connection, 'SELECT customer FROM public."Orders_history"')) == {"Eve"}
