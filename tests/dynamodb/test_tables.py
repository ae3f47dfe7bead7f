"""The description of a source table, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from types_boto3_dynamodb.client import DynamoDBClient

from pipeline.core.errors import TerminalError
from pipeline.core.model.mapping import TableMapping
from pipeline.dynamodb.tables import SourceTable, check_source, describe
from tests.dynamodb.conftest import enable_recovery

STREAM = {"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"}


def mapping(key: dict[str, str]) -> TableMapping:
    return TableMapping("employees", "Employees", key, (), path="tables/employees.yaml")


@pytest.mark.stack
def test_a_table_fit_for_replication(dynamodb: DynamoDBClient, make_table: Callable[..., str]) -> None:
    name = make_table({"PK": "S", "SK": "B"}, StreamSpecification=STREAM)
    enable_recovery(dynamodb, name)
    table = describe(dynamodb, name)
    assert table.name == name
    assert table.arn.endswith(f":table/{name}")
    assert list(table.key.items()) == [("PK", "S"), ("SK", "B")]
    assert (table.stream_enabled, table.stream_view_type) == (True, "NEW_AND_OLD_IMAGES")
    assert table.stream_arn == f"{table.arn}/stream/{table.stream_label}"
    assert table.pitr_enabled
    assert table.earliest_restorable is not None
    assert check_source(table, mapping({"PK": "S", "SK": "B"})) == []


@pytest.mark.stack
def test_a_table_without_stream_and_recovery(dynamodb: DynamoDBClient, make_table: Callable[..., str]) -> None:
    table = describe(dynamodb, make_table())
    assert (table.stream_enabled, table.stream_arn, table.pitr_enabled) == (False, None, False)
    stream, recovery = check_source(table, mapping({"Id": "N"}))
    assert f"update-table --table-name {table.name} --stream-specification StreamEnabled=true" in stream
    assert f"update-continuous-backups --table-name {table.name}" in recovery


@pytest.mark.stack
def test_a_table_that_is_not_there(dynamodb: DynamoDBClient) -> None:
    with pytest.raises(TerminalError, match=r"describing the table Nowhere: .*ResourceNotFound.*; check the table's"):
        describe(dynamodb, "Nowhere")


FIT = SourceTable(
    "Employees", "arn", None, {"PK": "S", "SK": "N"}, stream_enabled=True, stream_arn="a", stream_label="l",
    stream_view_type="NEW_IMAGE", item_count=0, size_bytes=0, pitr_enabled=True, earliest_restorable=None,
    latest_restorable=None,
)  # fmt: skip


@pytest.mark.parametrize("key", [{"PK": "S"}, {"SK": "N", "PK": "S"}, {"PK": "S", "SK": "S"}, {"pk": "S", "SK": "N"}])
def test_another_key(key: dict[str, str]) -> None:
    (problem,) = check_source(FIT, mapping(key))
    assert problem.startswith("the key of Employees is {PK: S, SK: N}, and the mapping employees says {")
    assert problem.endswith("write `key: {PK: S, SK: N}` under `source` in tables/employees.yaml")


@pytest.mark.parametrize("view_type", ["KEYS_ONLY", "OLD_IMAGE"])
def test_a_stream_without_new_images(view_type: str) -> None:
    (problem,) = check_source(replace(FIT, stream_view_type=view_type), mapping(FIT.key))
    assert f"has the view type {view_type}, without new images" in problem
    assert "StreamEnabled=false" in problem
