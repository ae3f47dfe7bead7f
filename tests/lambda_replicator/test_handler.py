"""The handler against real PostgreSQL: what it answers, what it stores, and what it never reveals."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import traceback
from pathlib import Path
from typing import Any

import pytest
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from lambda_replicator import runtime
from lambda_replicator.handler import lambda_handler
from lambda_replicator.telemetry import Telemetry, UnforeseenError
from pipeline.core.errors import ReplicationError, TerminalError, TransientError
from pipeline.jobs.replicate import ReplicationReport

VALUE = "Zaphod-7731"


def log_lines(captured: str) -> list[dict[str, Any]]:
    """Log lines and metric lines, in order."""
    return [json.loads(line) for line in captured.splitlines() if line.startswith("{")]


def everything_told(error: BaseException, captured: str) -> str:
    """Everything that Lambda could log: our lines, and the exception with its causes as Python prints it."""
    return captured + "".join(traceback.format_exception(error))


@pytest.mark.usefixtures("environment")
def test_a_batch_is_applied_and_answered(
    target: Any, context: Any, make_record: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"Records": [make_record(1, 2001), make_record(2, 2002), make_record(3, 2002, event="REMOVE")]}
    assert lambda_handler(event, context) == {"batchItemFailures": []}
    assert target.execute('SELECT "Id", "Name", "Department" FROM public."Employees"') == [(2001, "Akua", "NA")]
    line, metrics = log_lines(capsys.readouterr().out)
    assert (line["message"], line["level"], line["service"]) == ("batch applied", "INFO", "dynaurora")
    assert (line["table"], line["records"], line["function_request_id"]) == ("employees", 3, context.aws_request_id)
    assert line["last_sequence_number"] == "100000000000000000003"
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Namespace"] == "Dynaurora"
    assert metrics["_aws"]["CloudWatchMetrics"][0]["Dimensions"] == [["table"]]
    assert {m["Name"] for m in metrics["_aws"]["CloudWatchMetrics"][0]["Metrics"]} == {
        "Applied", "Stale", "Deleted", "Expired", "Rejected", "Ignored", "LagSeconds"
    }  # fmt: skip
    assert metrics["table"] == "employees"
    assert metrics["LagSeconds"][0] > 0


@pytest.mark.parametrize("lag_seconds", [None, 12.25])
def test_the_line_of_metrics_is_the_one_that_powertools_writes(
    lag_seconds: float | None, capsys: pytest.CaptureFixture[str]
) -> None:
    report = ReplicationReport("employees", 9, 5, 4, 3, 2, 1, lag_seconds, "1", None, ignored=6)
    Telemetry({"POWERTOOLS_METRICS_NAMESPACE": "Other"}).applied(report)
    theirs = EphemeralMetrics(namespace="Other", service="")
    theirs.add_dimension(name="table", value="employees")
    for name, value in (("Applied", 5), ("Stale", 4), ("Deleted", 3), ("Expired", 2), ("Rejected", 1), ("Ignored", 6)):
        theirs.add_metric(name=name, unit=MetricUnit.Count, value=value)
    if lag_seconds is not None:
        theirs.add_metric(name="LagSeconds", unit=MetricUnit.Seconds, value=lag_seconds)
    theirs.flush_metrics()
    mine, expected = [line for line in log_lines(capsys.readouterr().out) if "_aws" in line]
    assert 0 <= expected["_aws"].pop("Timestamp") - mine["_aws"].pop("Timestamp") < 60_000
    assert mine == expected


def test_metrics_can_be_switched_off(capsys: pytest.CaptureFixture[str]) -> None:
    Telemetry({"POWERTOOLS_METRICS_DISABLED": "true"}).applied(
        ReplicationReport("e", 1, 1, 0, 0, 0, 0, None, "1", None)
    )
    assert "_aws" not in capsys.readouterr().out


@pytest.mark.usefixtures("environment")
def test_a_batch_delivered_again_changes_nothing(
    target: Any, context: Any, make_record: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"Records": [make_record(1, 1), make_record(2, 2)]}
    lambda_handler(event, context)
    before = target.execute('SELECT * FROM replica."Employees" ORDER BY 1')
    capsys.readouterr()
    assert lambda_handler(event, context) == {"batchItemFailures": []}
    assert target.execute('SELECT * FROM replica."Employees" ORDER BY 1') == before
    assert log_lines(capsys.readouterr().out)[0]["stale"] == 2


@pytest.mark.usefixtures("environment")
def test_parsing_and_applying_events_searches_for_no_cycles(context: Any, make_record: Any) -> None:
    events = [json.dumps({"Records": [make_record(n, n) for n in range(100)]}) for _ in range(30)]
    lambda_handler(json.loads(events[0]), context)
    before = [generation["collections"] for generation in gc.get_stats()]
    for event in events:
        lambda_handler(json.loads(event), context)
    assert [generation["collections"] for generation in gc.get_stats()] == before


@pytest.mark.usefixtures("environment")
def test_without_time_for_the_rest_the_first_record_left_is_named(target: Any, context: Any, make_record: Any) -> None:
    context.remaining_milliseconds = 2_000
    event = {"Records": [make_record(number, number) for number in range(1, 2_601)]}
    answer = lambda_handler(event, context)
    [failure] = answer["batchItemFailures"]
    done = int(failure["itemIdentifier"]) - 100_000_000_000_000_000_000 - 1
    assert 0 < done < 2_600
    assert target.execute('SELECT count(*) FROM public."Employees"') == [(done,)]


@pytest.mark.usefixtures("environment")
def test_one_connection_serves_every_invocation(target: Any, context: Any, make_record: Any) -> None:
    for number in range(1, 4):
        lambda_handler({"Records": [make_record(number, number)]}, context)
    sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'dynaurora-replicator'"
    assert target.execute(sessions + f" AND datname = '{target.name}'") == [(1,)]


@pytest.mark.usefixtures("environment")
def test_a_connection_that_was_cut_is_made_again_and_nothing_is_lost(
    target: Any, context: Any, make_record: Any
) -> None:
    lambda_handler({"Records": [make_record(1, 1)]}, context)
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'dynaurora-replicator'"
    assert target.execute(cut + f" AND datname = '{target.name}'") == [(True,)]
    assert lambda_handler({"Records": [make_record(2, 2)]}, context) == {"batchItemFailures": []}
    assert target.execute('SELECT count(*) FROM public."Employees"') == [(2,)]


@pytest.mark.parametrize(
    ("state", "kind"), [("40001", TransientError), ("P0001", TerminalError), ("42501", TerminalError)]
)
def test_a_failure_is_raised_with_nothing_stored_and_no_value_told(
    environment: Any,
    target: Any,
    context: Any,
    make_record: Any,
    capsys: pytest.CaptureFixture[str],
    state: str,
    kind: type[ReplicationError],
) -> None:
    """PostgreSQL quotes the row in message and detail; neither may reach a log, at any level."""
    environment.setenv("POWERTOOLS_LOG_LEVEL", "DEBUG")
    environment.setenv("POWERTOOLS_LOGGER_LOG_EVENT", "true")
    target.execute(
        'CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN IF NEW."Id" = 2 THEN'
        " RAISE EXCEPTION 'bad row %', NEW USING DETAIL = NEW::text, HINT = NEW::text,"
        f" ERRCODE = '{state}'; END IF; RETURN NEW; END $$"
    )
    target.execute('CREATE TRIGGER refuse BEFORE INSERT ON replica."Employees" FOR EACH ROW EXECUTE FUNCTION refuse()')
    context.remaining_milliseconds = 3_000
    event = {"Records": [make_record(1, 1, name=VALUE), make_record(2, 2, name=VALUE)]}
    with pytest.raises(kind) as raised:
        lambda_handler(event, context)
    captured = capsys.readouterr()
    assert target.execute('SELECT count(*) FROM replica."Employees"') == [(0,)]
    told = everything_told(raised.value, captured.out + captured.err)
    assert state in told
    assert VALUE not in told
    assert target.url not in told
    assert raised.value.__cause__ is None
    [line] = [entry for entry in log_lines(captured.out) if entry["level"] == "ERROR"]
    assert line["message"] == "batch failed, nothing of it is stored"
    assert line["error_kind"] == type(raised.value).__name__


@pytest.mark.usefixtures("environment")
def test_a_record_that_cannot_be_converted_is_set_aside_and_its_value_not_told(
    target: Any, context: Any, make_record: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    event = {"Records": [make_record(1, 1, name=VALUE * 9), make_record(2, 2)]}
    assert lambda_handler(event, context) == {"batchItemFailures": []}
    captured = capsys.readouterr()
    assert VALUE not in captured.out + captured.err
    assert [m["Rejected"] for m in log_lines(captured.out) if "_aws" in m] == [[1.0]]
    assert target.execute('SELECT "Id" FROM public."Employees"') == [(2,)]
    assert target.execute("SELECT count(*) FROM replication.rejects") == [(1,)]


def test_an_error_nobody_foresaw_keeps_its_place_and_loses_its_text(
    monkeypatch: pytest.MonkeyPatch, context: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class Defective:
        def replicate(self, event: dict[str, Any], *, deadline: float) -> None:  # noqa: ARG002 (the interface)
            raise ValueError(f"cannot use {event['value']}") from KeyError(event["value"])

    monkeypatch.delitem(logging.Logger.manager.loggerDict, "dynaurora", raising=False)
    parts = runtime.Runtime(replicator=Defective(), telemetry=Telemetry({}))  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(runtime, "_runtime", parts)
    with pytest.raises(UnforeseenError, match=r"ValueError at test_handler\.py:\d+ in replicate") as raised:
        lambda_handler({"value": VALUE}, context)
    captured = capsys.readouterr()
    assert VALUE not in everything_told(raised.value, captured.out + captured.err)


@pytest.mark.usefixtures("environment")
def test_a_table_without_a_mapping_is_refused(context: Any, make_record: Any) -> None:
    foreign = make_record(1, 1)
    foreign["eventSourceARN"] = foreign["eventSourceARN"].replace("Employees", "Orders")
    with pytest.raises(TerminalError, match="no mapping for the DynamoDB table Orders"):
        lambda_handler({"Records": [foreign]}, context)


@pytest.mark.usefixtures("environment")
def test_a_mapping_file_that_cannot_be_used_stops_the_batches_of_its_own_table_alone(
    target: Any, context: Any, make_record: Any, tmp_path: Path, mappings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = tmp_path / "tables"
    shutil.copytree(mappings, tables)
    (tables / "orders.yaml").write_text("source: {table: Orders\n")
    monkeypatch.setenv("DYNAURORA_TABLES", str(tables))
    assert lambda_handler({"Records": [make_record(1, 1)]}, context) == {"batchItemFailures": []}
    assert target.execute('SELECT "Id" FROM public."Employees"') == [(1,)]
    foreign = make_record(1, 1)
    foreign["eventSourceARN"] = foreign["eventSourceARN"].replace("Employees", "Orders")
    with pytest.raises(TerminalError, match=r"no mapping for the DynamoDB table Orders .*orders\.yaml"):
        lambda_handler({"Records": [foreign]}, context)


@pytest.mark.usefixtures("environment")
def test_a_stream_without_new_images_is_refused(context: Any, make_record: Any) -> None:
    keys_only = make_record(1, 1)
    del keys_only["dynamodb"]["NewImage"]
    keys_only["dynamodb"]["StreamViewType"] = "KEYS_ONLY"
    with pytest.raises(TerminalError, match="KEYS_ONLY"):
        lambda_handler({"Records": [keys_only]}, context)


NO_BATCHES: list[tuple[Any, str]] = [
    ({}, "an empty object"),
    ({"key1": VALUE, "key2": "value2"}, "console's test event"),
    ({"deliveryStreamArn": VALUE, "records": []}, "Firehose"),
    ({"Records": None}, "whose `Records` is null"),
    ({"Records": [{"messageId": VALUE, "body": VALUE, "eventSourceARN": "arn:aws:sqs:eu-central-1:1:q"}]}, "SQS"),
    ({"Records": [{"Sns": {"Message": VALUE}, "EventSource": "aws:sns"}]}, "SNS"),
    ({"Records": [{"s3": {"object": {"key": VALUE}}, "eventSource": "aws:s3"}]}, "S3"),
    ({"Records": [{"kinesis": {"data": VALUE}, "eventSourceARN": "arn:aws:kinesis:eu:1:stream/x"}]}, "Kinesis stream"),
    ([{"tableName": VALUE, "recordFormat": "application/json", "dynamodb": {}}], "Kinesis Data Streams for DynamoDB"),
]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize(("event", "came"), NO_BATCHES)
def test_an_event_that_is_no_batch_fails_and_is_named(
    context: Any, capsys: pytest.CaptureFixture[str], event: Any, came: str
) -> None:
    with pytest.raises(TerminalError, match="expected a batch of DynamoDB stream records") as raised:
        lambda_handler(event, context)
    assert came in str(raised.value)
    assert not isinstance(raised.value, UnforeseenError)
    assert VALUE not in everything_told(raised.value, capsys.readouterr().out)


@pytest.mark.usefixtures("environment")
def test_a_bare_list_of_records_is_applied(target: Any, context: Any, make_record: Any) -> None:
    assert lambda_handler([make_record(1, 1)], context) == {"batchItemFailures": []}
    assert target.execute('SELECT "Id" FROM public."Employees"') == [(1,)]


@pytest.mark.usefixtures("environment")
@pytest.mark.parametrize("wrong", ["table", "source"])
def test_of_an_event_with_a_second_source_that_is_unknown_nothing_is_stored(
    target: Any, context: Any, make_record: Any, wrong: str
) -> None:
    foreign = make_record(2, 2)
    foreign["eventSourceARN"] = "arn:aws:sqs:x" if wrong == "source" else foreign["eventSourceARN"].replace("Emp", "X")
    with pytest.raises(TerminalError):
        lambda_handler({"Records": [make_record(1, 1), foreign]}, context)
    assert target.execute('SELECT count(*) FROM public."Employees"') == [(0,)]


@pytest.mark.usefixtures("environment")
def test_what_was_committed_of_a_first_stream_is_not_told_as_failed_with_the_second(
    target: Any, context: Any, make_record: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make_record(2, 2)
    other["eventSourceARN"] = other["eventSourceARN"].replace("2026-01-01", "2026-02-02")
    other["dynamodb"]["ApproximateCreationDateTime"] = VALUE
    answer = lambda_handler({"Records": [make_record(1, 1), other]}, context)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "100000000000000000002"}]}
    assert target.execute('SELECT "Id" FROM public."Employees"') == [(1,)]
    told = capsys.readouterr().out
    assert "rest of the batch failed" in told
    assert VALUE not in told
