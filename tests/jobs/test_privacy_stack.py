"""The proof: a protected value is in no table, log, output or file of ours, after every flow has had it.

Every flow runs on the local stack, with a value that can be recognised in each protected place, while the server logs
each statement with its parameters. Then everything is searched, also for a value in clear, which must be found.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql

from lambda_replicator import runtime
from lambda_replicator.handler import lambda_handler
from pipeline.cli import main
from pipeline.dynamodb.client import client
from pipeline.jobs.load.load import load
from pipeline.jobs.services import Services
from pipeline.jobs.snapshots.snapshot import take_snapshot
from pipeline.local.mapping_delivery import Discard
from pipeline.local.mapping_documents import failure_document
from pipeline.local.postgres import PostgresServer
from pipeline.local.stack import LocalStack
from pipeline.mappings import load_mappings
from pipeline.settings import Settings

MARK, CLEAR, NUMBER = "Slartibartfast", "Magrathea", "8675309421"
"""MARK and NUMBER are protected wherever they are; CLEAR is not."""
MAPPING = """
name: people
source: {table: TABLE, key: {Id: N}}
margin: 1s
targets:
  People:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Name: {attribute: name, type: varchar(20)}
      Email: {attribute: email, type: text, protect: hash}
      Phone: {attribute: phone, type: text, protect: mask}
      Born: {attribute: born, type: date, protect: drop}
    unmapped: {column: rest, drop: [ssn, "card.*"], mask: ["notes.text"], hash: [taxId]}
    history: {keep: 400d}
  Accounts:
    parent: People
    explode: accounts
    element: {place: integer}
    columns:
      iban: {attribute: iban, type: text, protect: hash}
      bank: {attribute: bank, type: text}
"""


def person(number: int, *, name: str = CLEAR, again: int = 0) -> dict[str, Any]:
    return {
        "Id": {"N": str(number)},
        "name": {"S": name},
        "email": {"S": f"{MARK}{number}@example.com"},
        "phone": {"N": NUMBER},
        "born": {"S": MARK},
        "ssn": {"S": f"{MARK} {again}"},
        "card": {"M": {"number": {"S": f"{MARK} card"}, "of": {"S": MARK}}},
        "notes": {"L": [{"M": {"text": {"S": f"{MARK} note"}, "by": {"S": CLEAR}}}]},
        "taxId": {"S": f"{MARK} tax"},
        "accounts": {"L": [{"M": {"iban": {"S": f"{MARK} iban"}, "bank": {"S": CLEAR}}}]},
    }


@dataclass
class World:
    """The table, the function, the command line; and all that they said."""

    server: PostgresServer
    environment: dict[str, str]
    table: str
    capture: pytest.CaptureFixture[str]
    said: list[str] = field(default_factory=list[str])
    iterator: str | None = None

    @property
    def services(self) -> Services:
        return Services(Settings.from_environment(self.environment))

    @property
    def file(self) -> Path:
        return Path(self.environment["DYNAURORA_TABLES"]) / "people.yaml"

    def run(self, *words: str) -> Any:  # noqa: ANN401 - the verb's document
        """Run a verb, once for machines and once for people."""
        assert main([*words, "--json"], self.environment) < 2, self.capture.readouterr().err
        read = self.capture.readouterr()
        main(list(words), self.environment)
        again = self.capture.readouterr()
        self.said += [read.out, read.err, again.out, again.err]
        document = json.loads(read.out)
        assert "error" not in document, document
        return document

    def put(self, *items: dict[str, Any]) -> None:
        for item in items:
            self.services.dynamodb.put_item(TableName=self.table, Item=item)

    def records(self) -> list[dict[str, Any]]:
        """The stream's records since the last call, as Lambda delivers them."""
        services = self.services
        described: Any = services.dynamodb.describe_table(TableName=self.table)
        arn = described["Table"]["LatestStreamArn"]
        if self.iterator is None:
            shards: Any = services.streams.describe_stream(StreamArn=arn)
            shard = shards["StreamDescription"]["Shards"][0]["ShardId"]
            found: Any = services.streams.get_shard_iterator(
                StreamArn=arn, ShardId=shard, ShardIteratorType="TRIM_HORIZON"
            )
            self.iterator = found["ShardIterator"]
        answer: Any = services.streams.get_records(ShardIterator=cast("str", self.iterator))
        self.iterator = answer["NextShardIterator"]
        for record in answer["Records"]:
            record |= {"eventSourceARN": arn, "eventSource": "aws:dynamodb"}
            change = record["dynamodb"]
            change["ApproximateCreationDateTime"] = change["ApproximateCreationDateTime"].timestamp()
        return answer["Records"]

    def invoke(self, records: list[dict[str, Any]]) -> None:
        """Invoke the function's handler."""

        class Context:
            aws_request_id = "request"
            function_name = "replicator"
            memory_limit_in_mb = 512
            invoked_function_arn = "arn:aws:lambda:eu-central-1:111122223333:function:replicator"

            def get_remaining_time_in_millis(self) -> int:
                return 60_000

        assert lambda_handler({"Records": records}, cast("Any", Context())) == {"batchItemFailures": []}
        read = self.capture.readouterr()
        self.said += [read.out, read.err]

    def tables(self) -> str:
        """All rows of all tables and views, as text."""
        url = self.environment["DATABASE_URL"]
        with psycopg.connect(url, autocommit=True) as connection:
            names = connection.execute(
                "SELECT table_schema, table_name FROM information_schema.tables"
                " WHERE table_schema NOT IN ('pg_catalog', 'information_schema')"
            ).fetchall()
            return "\n".join(
                text
                for schema, name in names
                for (text,) in connection.execute(
                    sql.SQL("SELECT t::text FROM {} AS t").format(sql.Identifier(schema, name))
                )
            )

    def objects(self, bucket: str) -> Iterator[tuple[str, str]]:
        """The objects of a bucket, inflated."""
        s3 = self.services.s3
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for entry in page.get("Contents", []):
                key = entry.get("Key", "")
                content = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
                yield key, (gzip.decompress(content) if key.endswith(".gz") else content).decode()


@pytest.fixture
def world(
    stack: LocalStack,
    postgres: PostgresServer,
    database: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[World]:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    table, bucket = f"People-{uuid4().hex[:8]}", f"people-{uuid4().hex[:8]}"
    dynamodb = client("dynamodb", stack.endpoint_url)
    client("s3", stack.endpoint_url).create_bucket(Bucket=bucket)
    dynamodb.create_table(
        TableName=table,
        AttributeDefinitions=[{"AttributeName": "Id", "AttributeType": "N"}],
        KeySchema=[{"AttributeName": "Id", "KeyType": "HASH"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )
    dynamodb.update_continuous_backups(
        TableName=table, PointInTimeRecoverySpecification={"PointInTimeRecoveryEnabled": True}
    )
    secret = client("secretsmanager", stack.endpoint_url).create_secret(
        Name=f"privacy-{table}", SecretString=json.dumps({"key": "a key of at least thirty-two characters"})
    )
    for folder in ("tables", "temporary"):
        (tmp_path / folder).mkdir()
    (tmp_path / "tables" / "people.yaml").write_text(MAPPING.replace("TABLE", table))
    settings = {
        "DATABASE_URL": database,
        "DYNAURORA_TABLES": str(tmp_path / "tables"),
        "DYNAURORA_EXPORT_BUCKET": bucket,
        "DYNAURORA_ON_FAILURE": f"s3://{bucket}/aws/lambda/",
        "PRIVACY_KEY_SECRET_ID": secret["ARN"],
        "TMPDIR": str(tmp_path / "temporary"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", settings["TMPDIR"])
    monkeypatch.setattr(runtime, "_runtime", None)
    name = database.rpartition("/")[2]
    with psycopg.connect(postgres.url, autocommit=True) as connection:
        for setting in ("log_statement = 'all'", "log_min_duration_statement = 0", "log_error_verbosity = 'verbose'",
                        "log_parameter_max_length = -1", "log_parameter_max_length_on_error = -1"):  # fmt: skip
            connection.execute(f'ALTER DATABASE "{name}" SET {setting}'.encode())
    yield World(postgres, {**os.environ, **settings}, table, capsys)
    if runtime._runtime is not None:  # pyright: ignore[reportPrivateUsage]
        runtime._runtime.replicator.close()  # pyright: ignore[reportPrivateUsage]


@pytest.mark.timeout(600)
def test_a_protected_value_is_in_nothing_that_any_flow_leaves_behind(world: World) -> None:
    world.run("migrate")
    (mapping,) = load_mappings(world.file.parent)

    # The stream: rows, a reject, a value that only PostgreSQL refuses, a delete.
    time.sleep(1.1)
    begin = datetime.now(UTC).replace(microsecond=0)
    world.put(*map(person, range(6)), person(100, name="a name that is far too long for it"), person(101, name="\0"))
    world.services.dynamodb.delete_item(TableName=world.table, Key={"Id": {"N": "5"}})
    world.invoke(world.records())
    assert world.run("rejects", "list")["waiting"] == 2

    # Loads: built aside, and merged from a scan.
    time.sleep(1.1)
    world.put(*map(person, range(6, 9)))
    snapshot = take_snapshot(world.services, mapping).location
    assert load(world.services, mapping, snapshot, aside_from=1).strategy == "aside"
    assert world.run("load", "people", "--scan")["items"] == 10

    # Reconciliation finds a wrong hash, repairs it and shows nothing.
    with psycopg.connect(world.environment["DATABASE_URL"], autocommit=True) as connection:
        connection.execute("""UPDATE replica."People" SET "Email" = 'wrong' WHERE "Id" = 3""")
        connection.execute("SELECT %s::text", [f"control {CLEAR}"])
    time.sleep(2.1)
    report = world.run("reconcile", "people", "--repair", "--show-keys")
    assert (report["different"], report["repaired"]) == (1, 1)
    world.run("reconcile", "people", "--key", "Id=3", "--values")

    # Catch up over what the stream lost; redrive what Lambda discarded; replay rejects.
    time.sleep(1.1)
    world.put(*[person(number, again=2) for number in range(4)])
    lost = world.records()
    time.sleep(2.5)
    end = datetime.now(UTC).replace(microsecond=0)
    caught_up = world.run("catch-up", "people", "--from", begin.isoformat(), "--to", end.isoformat())
    assert caught_up["applied"] > 0
    world.put(person(9))
    kept = failure_document("s", lost[0]["eventSourceARN"],
                            Discard([*lost, *world.records()], "RetryAttemptsExhausted", 3, function_error=True),
                            datetime.now(UTC))  # fmt: skip
    bucket = world.environment["DYNAURORA_EXPORT_BUCKET"]
    world.services.s3.put_object(Bucket=bucket, Key="aws/lambda/m/1", Body=kept)
    assert world.run("redrive", "people")["applied"] >= 1
    world.file.write_text(world.file.read_text().replace("varchar(20)", "varchar(60)"))
    world.run("migrate")
    (reject, *_) = world.run("rejects", "list")["groups"]
    world.run("rejects", "show", str(reject["id"]), "--show-values")
    world.run("rejects", "replay", "people")

    # A column for what landed in the jsonb column, and everything that looks at it.
    grown = world.file.read_text().replace(", hash: [taxId]", "")
    grown = grown.replace("    unmapped:", "      Tax: {attribute: taxId, type: text, protect: hash}\n    unmapped:")
    world.file.write_text(grown)
    world.run("migrate")
    assert world.run("promote", "people")["attributes"][0]["filled"] > 0
    for verb in ("unmapped", "status", "plan"):
        main([verb], world.environment)
        world.said += [*world.capture.readouterr()]

    # Everything is searched.
    log = world.server.log_path.read_text(errors="replace")
    texts = {"tables": world.tables(), "the server's log": log, "output": "\n".join(world.said)}
    scans = {
        key.rpartition("/manifest-summary.json")[0] for key, text in world.objects(bucket) if "dynauroraScan" in text
    }
    files = dict(world.objects(bucket))
    texts["scans"] = "".join(text for key, text in files.items() if any(key.startswith(scan) for scan in scans if scan))
    temporary = Path(world.environment["TMPDIR"])
    texts["temporary files"] = "".join(p.read_text(errors="replace") for p in temporary.rglob("*") if p.is_file())
    for where, text in texts.items():
        assert MARK not in text, (where, text[text.index(MARK) - 300 : text.index(MARK) + 100])
        assert NUMBER not in text, (where, text[text.index(NUMBER) - 300 : text.index(NUMBER) + 100])
        assert where == "temporary files" or CLEAR in text, f"the search finds nothing in {where}"
    assert any(MARK in text for text in files.values()), (
        "DynamoDB's exports are its own: they show what is searched for"
    )

    # An item is forgotten: in the batches that Lambda discarded, too.
    world.services.dynamodb.delete_item(TableName=world.table, Key={"Id": {"N": "3"}})
    time.sleep(2.1)
    world.invoke(world.records())
    world.run("forget", "people", "--key", "Id=3")
    assert f"{MARK}3@" not in "".join(text for key, text in world.objects(bucket) if "lambda" in key)
    with psycopg.connect(world.environment["DATABASE_URL"]) as connection:
        row = connection.execute("""SELECT to_jsonb(p) FROM replica."People" AS p WHERE "Id" = 3""").fetchone()
        assert row is not None
        assert {name for name, value in row[0].items() if value is not None} <= {"Id", "_as_of", "_version", "_deleted"}
        assert connection.execute(
            """SELECT count(*) FROM "People_history" WHERE "Id" = 3 AND NOT deleted"""
        ).fetchone() == (0,)
