"""The worked example of a single-table design, end to end: load, stream, unmatched items, reconciliation, repair."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.schema.migrate import migrate
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.mapping import TableMapping, Unmatched
from pipeline.core.types.sql_types import SqlType
from pipeline.jobs.load.load import LoadReport, load
from pipeline.jobs.reconcile.reconcile import ReconcileReport, reconcile
from pipeline.jobs.replay import replay
from pipeline.jobs.replicate import ReplicationReport, Replicator
from pipeline.jobs.services import Services
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from pipeline.settings import Settings
from tests.dynamodb.export_fixture import ExportFactory, Layout

EXAMPLE = Path(__file__).parents[2] / "examples" / "shop" / "tables"
MARGIN = timedelta(minutes=5)
Item = dict[str, Any]


def customer(number: int, name: str = "Ama", city: str = "Accra") -> Item:
    return {
        "PK": {"S": f"CUSTOMER#{number}"},
        "SK": {"S": "PROFILE"},
        "name": {"S": name},
        "address": {"M": {"city": {"S": city}}},
        "since": {"S": "2026-01-31"},
    }


def order(number: int, name: str, *lines: tuple[str, str], status: str = "paid") -> Item:
    return {
        "PK": {"S": f"CUSTOMER#{number}"},
        "SK": {"S": f"ORDER#2026-05-01#{name}"},
        "status": {"S": status},
        "total": {"N": "12.5"},
        "lines": {"L": [{"M": {"sku": {"S": sku}, "quantity": {"N": quantity}}} for sku, quantity in lines]},
    }


STORE = {"PK": {"S": "STORE#1"}, "SK": {"S": "PROFILE"}}


class Shop:
    """A DynamoDB table of its own, and its replica."""

    def __init__(self, services: Services, exports: ExportFactory) -> None:
        self.services, self.exports = services, exports
        (mapping,) = load_mappings(EXAMPLE)
        self.mapping: TableMapping = replace(mapping, table=f"Shop-{uuid4().hex}")
        services.dynamodb.create_table(
            TableName=self.mapping.table,
            AttributeDefinitions=[{"AttributeName": n, "AttributeType": "S"} for n in ("PK", "SK")],
            KeySchema=[{"AttributeName": "PK", "KeyType": "HASH"}, {"AttributeName": "SK", "KeyType": "RANGE"}],
            BillingMode="PAY_PER_REQUEST",
        )
        self.items: dict[tuple[str, str], Item] = {}
        self.now = datetime.now(UTC)
        self.sequence = 10**20
        self.stream = (
            f"arn:aws:dynamodb:eu-central-1:111122223333:table/{self.mapping.table}/stream/2026-05-14T10:00:00.000"
        )

    def put(self, *items: Item) -> list[Item]:
        """Write items to DynamoDB; returns the records that its stream would carry."""
        records: list[Item] = []
        for item in items:
            self.services.dynamodb.put_item(TableName=self.mapping.table, Item=item)
            self.items[item["PK"]["S"], item["SK"]["S"]] = item
            records.append(self.record_of(item, item))
        return records

    def delete(self, *items: Item) -> list[Item]:
        records: list[Item] = []
        for item in items:
            key: Any = {name: item[name] for name in ("PK", "SK")}
            self.services.dynamodb.delete_item(TableName=self.mapping.table, Key=key)
            del self.items[item["PK"]["S"], item["SK"]["S"]]
            records.append(self.record_of(item, None))
        return records

    def record_of(self, item: Item, image: Item | None) -> Item:
        self.sequence += 1
        change: Item = {
            "ApproximateCreationDateTime": int(self.now.timestamp()) - 1800,
            "Keys": {name: item[name] for name in ("PK", "SK")},
            "SequenceNumber": str(self.sequence),
        } | ({"NewImage": image} if image else {})
        name = "MODIFY" if image else "REMOVE"
        return {"eventName": name, "eventSourceARN": self.stream, "dynamodb": change}

    def export(self, minutes_ago: float) -> str:
        return self.exports.full(
            self.items.values(),
            Layout(table=self.mapping.table),
            export_time=self.now - timedelta(minutes=minutes_ago),
        ).location

    def load(self, minutes_ago: float = 60) -> LoadReport:
        return load(self.services, self.mapping, self.export(minutes_ago), margin=MARGIN)

    def apply(self, *records: Item) -> ReplicationReport:
        replicator = Replicator([self.mapping], lambda: self.services.connect("test"), writer="test")
        with closing(replicator):
            (report,) = replicator.replicate({"Records": list(records)}, deadline=time.monotonic() + 60)
        return report

    def reconcile(self, minutes_ago: float = 6, *, repair: bool = False) -> ReconcileReport:
        return reconcile(self.services, self.mapping, self.export(minutes_ago), repair=repair, margin=MARGIN)


@pytest.fixture
def services(stack: LocalStack, database: str, monkeypatch: pytest.MonkeyPatch) -> Services:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    return Services(Settings.from_environment(dict(os.environ) | {"DATABASE_URL": database}))


@pytest.fixture
def shop(services: Services, exports: ExportFactory) -> Generator[Shop]:
    made = Shop(services, exports)
    with closing(services.connect("test migrate")) as connection:
        migrate(connection, [made.mapping])
    yield made
    services.dynamodb.delete_table(TableName=made.mapping.table)


def customers(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute('SELECT customer_id, name, city FROM shop."Customers" ORDER BY 1').fetchall()


def orders(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        'SELECT customer_id, placed_on::text, order_id, status, total::text FROM shop."Orders" ORDER BY 1, 2, 3'
    ).fetchall()


def rejects(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute("SELECT target, reason FROM replication.rejects ORDER BY id").fetchall()


def test_a_load_parts_the_items_and_every_line_counts(shop: Shop, connection: Connection) -> None:
    shop.put(customer(1), customer(2), order(1, "a"), STORE, {**customer(3), "PK": {"S": "CUSTOMER#003"}})
    report = shop.load()
    assert customers(connection) == [(1, "Ama", "Accra"), (2, "Ama", "Accra")]
    assert orders(connection) == [(1, "2026-05-01", "a", "paid", "12.50")]
    assert (report.items, report.applied, report.stale, report.rejected, report.ignored) == (5, 3, 0, 2, 0)
    assert sorted(rejects(connection)) == [
        ("", "its key matches no target"),
        (
            "shop.Customers",
            'column "customer_id": the captured part is not a whole number without sign and leading zeros',
        ),
    ]


def test_unmatched_items_are_left_out_and_counted_where_the_mapping_says_so(shop: Shop, connection: Connection) -> None:
    shop.mapping = replace(shop.mapping, unmatched=Unmatched.IGNORE)
    shop.put(customer(1), STORE)
    report = shop.load()
    assert (report.items, report.rows, report.applied, report.rejected, report.ignored) == (2, 2, 1, 0, 1)
    applied = shop.apply(*shop.put(STORE, customer(2)))
    assert (applied.records, applied.applied, applied.rejected, applied.ignored) == (2, 1, 0, 1)
    assert rejects(connection) == []
    assert shop.reconcile().rejected == 0


def test_live_changes_and_deletes_go_to_their_tables(shop: Shop, connection: Connection) -> None:
    shop.put(customer(1), order(1, "a"))
    shop.load()
    shop.apply(
        *shop.put(customer(1, city="Kumasi"), order(1, "b", status="new"), customer(2)), *shop.delete(order(1, "a"))
    )
    assert customers(connection) == [(1, "Ama", "Kumasi"), (2, "Ama", "Accra")]
    assert orders(connection) == [(1, "2026-05-01", "b", "new", "12.50")]
    report = shop.apply(*shop.put(STORE))
    assert (report.applied, report.rejected) == (0, 1)
    assert shop.reconcile().drift == 0


def test_reconciliation_finds_and_repairs_rows_of_each_kind_by_their_own_keys(
    shop: Shop, connection: Connection
) -> None:
    shop.put(customer(1), customer(2), order(1, "a"), order(2, "b"), STORE)
    shop.load()
    before = customers(connection), orders(connection)
    connection.execute("""UPDATE replica."shop.Customers" SET city = 'Tema' WHERE customer_id = 1""")
    connection.execute("""DELETE FROM replica."shop.Orders" WHERE order_id = 'a'""")
    connection.execute(
        """INSERT INTO replica."shop.Orders" (customer_id, placed_on, order_id, _as_of)
           VALUES (7, '2026-01-01', 'invented', now() - interval '1 day')"""
    )
    report = shop.reconcile(repair=True)
    assert (report.missing, report.extra, report.different, report.repaired) == (1, 1, 1, 3)
    assert (report.compared, report.rejected) == (5, 1)
    assert (customers(connection), orders(connection)) == before
    assert shop.reconcile(minutes_ago=5.5).drift == 0


def test_one_replicator_serves_several_tables_and_names_one_it_does_not_know(
    shop: Shop, employees: TableMapping, connection: Connection
) -> None:
    migrate(connection, [shop.mapping, employees])
    stream = "arn:aws:dynamodb:eu-central-1:111122223333:table/Employees/stream/2026-05-14T10:00:00.000"
    keys = {"Id": {"N": "5"}}
    change = {
        "ApproximateCreationDateTime": shop.now.timestamp(),
        "Keys": keys,
        "NewImage": keys,
        "SequenceNumber": "1",
    }
    employee = {"eventName": "INSERT", "eventSourceARN": stream, "dynamodb": change}
    replicator = Replicator([shop.mapping, employees], lambda: shop.services.connect("test"), writer="test")
    with closing(replicator):
        records = [*shop.put(customer(1)), employee, *shop.put(order(1, "a"))]
        reports = replicator.replicate({"Records": records}, deadline=time.monotonic() + 60)
        assert [(report.table, report.applied) for report in reports] == [("shop", 1), ("employees", 1), ("shop", 1)]
        stranger = {**employee, "eventSourceARN": stream.replace("Employees", "Strangers")}
        with pytest.raises(ConfigurationError, match="no mapping for the DynamoDB table Strangers"):
            replicator.replicate({"Records": [stranger]}, deadline=time.monotonic() + 60)
    assert (len(customers(connection)), len(orders(connection))) == (1, 1)
    assert connection.execute('SELECT "Id" FROM public."Employees"').fetchall() == [(5,)]


def lines(connection: Connection) -> list[tuple[Any, ...]]:
    return connection.execute(
        'SELECT customer_id, order_id, line, sku, quantity FROM shop."OrderLines" ORDER BY 1, 2, 3'
    ).fetchall()


def test_lines_come_and_go_with_their_order(shop: Shop, connection: Connection) -> None:
    shop.put(customer(1), order(1, "a", ("pen", "2"), ("ink", "1")), order(1, "b"))
    shop.load()
    assert lines(connection) == [(1, "a", 0, "pen", 2), (1, "a", 1, "ink", 1)]
    shop.apply(*shop.put(order(1, "a", ("ink", "3")), order(1, "b", ("cap", "1"))))
    assert lines(connection) == [(1, "a", 0, "ink", 3), (1, "b", 0, "cap", 1)]
    old = shop.record_of(order(1, "a", ("pen", "9")), order(1, "a", ("pen", "9")))
    old["dynamodb"]["SequenceNumber"] = "1"
    assert shop.apply(old).stale == 1
    assert lines(connection)[0] == (1, "a", 0, "ink", 3), "an older state of the parent leaves its children alone"
    shop.apply(*shop.delete(order(1, "a")))
    assert lines(connection) == [(1, "b", 0, "cap", 1)]
    assert shop.reconcile().drift == 0


def test_damaged_children_are_drift_of_their_parent_and_repaired(shop: Shop, connection: Connection) -> None:
    shop.put(*[order(1, name, ("pen", "2"), ("ink", "1")) for name in "abcde"])
    shop.load()
    before = lines(connection)
    for statement in (
        "UPDATE {} SET quantity = 5 WHERE order_id = 'a' AND line = 0",
        "DELETE FROM {} WHERE order_id = 'b' AND line = 1",
        "INSERT INTO {} SELECT customer_id, placed_on, order_id, 7, sku, 1, NULL, _as_of FROM {} WHERE order_id = 'c'"
        " AND line = 1",
        "INSERT INTO {} SELECT customer_id, placed_on, 'none', line, sku, 1, NULL, _as_of FROM {} WHERE order_id = 'd'",
    ):
        connection.execute(statement.replace("{}", 'replica."shop.OrderLines"').encode())
    report = shop.reconcile()
    assert (report.missing, report.extra, report.different) == (0, 1, 3)
    assert report.by_column == {"shop.OrderLines": 3}
    assert len(lines(connection)) == len(before) + 2, "reported, not repaired"
    report = shop.reconcile(repair=True)
    assert (report.drift, report.repaired) == (4, 4)
    assert lines(connection) == before
    assert shop.reconcile(minutes_ago=5.5).drift == 0


def test_a_line_that_cannot_be_held_rejects_its_whole_order(shop: Shop, connection: Connection) -> None:
    shop.apply(*shop.put(order(1, "a", ("pen", "2"))))
    bad = order(1, "a", ("pen", "2.5"))
    report = shop.apply(*shop.put(bad, order(1, "b", ("ink", "1"))))
    assert (report.applied, report.rejected) == (1, 1)
    assert lines(connection) == [(1, "a", 0, "pen", 2), (1, "b", 0, "ink", 1)]
    assert rejects(connection) == [("shop.Orders", 'column "shop.OrderLines.quantity": is not a whole number')]


def test_a_record_without_a_target_is_replayed_once_the_mapping_has_one(shop: Shop, connection: Connection) -> None:
    whole, orders_alone = shop.mapping, shop.mapping.targets[1:]
    shop.mapping = replace(whole, targets=orders_alone)
    assert shop.apply(*shop.put(customer(1), order(1, "a", ("pen", "2")))).rejected == 1
    assert replay(connection, shop.mapping).failed == 1
    report = replay(connection, whole)
    assert (report.replayed, report.applied, report.waiting) == (1, 1, 0)
    assert customers(connection) == [(1, "Ama", "Accra")]
    assert lines(connection) == [(1, "a", 0, "pen", 2)]


def test_a_rejected_order_is_replayed_with_its_lines(shop: Shop, connection: Connection) -> None:
    whole = shop.mapping
    (orders,) = (target for target in whole.targets if target.children)
    (child,) = orders.children
    shop.apply(*shop.put(order(1, "a", ("pen", "2"))))
    narrow = replace(child, columns=(*child.columns[:-1], replace(child.columns[-1], type=SqlType("smallint"))))
    shop.mapping = replace(whole, targets=(whole.targets[0], replace(orders, children=(narrow,))))
    assert shop.apply(*shop.put(order(1, "a", ("ink", "70000")))).rejected == 1
    assert lines(connection) == [(1, "a", 0, "pen", 2)]
    assert replay(connection, whole).applied == 1
    assert lines(connection) == [(1, "a", 0, "ink", 70000)]
