"""The detector of lost history: every way to lose changes, what it reports, and when it stops reporting it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from pipeline.aurora.bookkeeping import losses
from pipeline.aurora.bookkeeping.watermarks import lambda_writer
from pipeline.aurora.sessions.connection import Connection
from pipeline.core.model.mapping import TableMapping
from pipeline.core.past.lost_history import Finding, Kind, Severity
from pipeline.dynamodb.streams.event_sources import event_source_mappings
from pipeline.jobs.probe.lost_history import HistoryReport, lost_history_report
from pipeline.jobs.services import Services
from tests.dynamodb.scripted_stream import ScriptedServices, ScriptedStream

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@dataclass
class World:
    """A table whose source is scripted, and the detector on it."""

    services: ScriptedServices
    mapping: TableMapping
    connection: Connection
    now: datetime = NOW

    def look(self, after: timedelta = timedelta(minutes=10)) -> HistoryReport:
        self.now += after
        return lost_history_report(self.services, self.mapping, now=lambda: self.now)

    def kinds(self) -> list[Kind]:
        return [finding.kind for finding in self.look().findings]

    def only(self) -> Finding:
        (finding,) = self.look().findings
        return finding

    def map(self, uuid: str = "esm-1", state: str = "Enabled", start: str = "TRIM_HORIZON") -> None:
        self.services.lambdas.add(self.services.stream.arn, uuid, state, start)

    def probed(self, *, through: datetime | None, waiting: datetime | None = None) -> None:
        """Write to the bookkeeping what a probe would have found."""
        name, label = self.mapping.name, self.services.stream.label
        self.connection.execute("DELETE FROM replication.probe_waiting")
        self.connection.execute(
            "INSERT INTO replication.probes (table_name, stream_label, ticked_at, caught_up_through,"
            " read_whole, waiting, oldest_waiting, shards, calls, records) VALUES (%s, %s, %s, %s, true, 0, %s, 1,"
            " 1, 1) ON CONFLICT (table_name) DO UPDATE SET caught_up_through = excluded.caught_up_through,"
            " stream_label = excluded.stream_label",
            [name, label, self.now, through, waiting],
        )
        if waiting is not None:
            self.connection.execute(
                "INSERT INTO replication.probe_waiting VALUES (%s, 'public.Employees', '{1}', 1, %s, %s, 's')",
                [name, waiting, waiting],
            )


@pytest.fixture
def world(services: Services, employees: TableMapping, connection: Connection) -> World:
    made = World(ScriptedServices(services.settings, ScriptedStream()), employees, connection)
    made.map()
    return made


def test_a_source_at_work_gives_no_finding(world: World) -> None:
    assert world.kinds() == world.kinds() == []


def test_a_stream_that_is_off(world: World) -> None:
    world.look()
    seen = world.now
    world.services.stream.enabled = False
    finding = world.only()
    assert (finding.kind, finding.severity, finding.since) == (Kind.STREAM_OFF, Severity.ERROR, seen)
    assert "`aws dynamodb update-table --table-name Employees --stream-specification" in finding.remedy


def test_a_view_type_without_new_images(world: World) -> None:
    world.services.stream.view_type = "KEYS_ONLY"
    assert world.kinds() == [Kind.VIEW_TYPE]


def test_a_recreated_stream_is_a_loss_until_catch_ups_cover_it(world: World) -> None:
    world.look()
    world.probed(through=world.now - HOUR)
    applied = world.now - HOUR
    world.services.stream.label = "2026-05-20T13:00:00.000"
    world.map("esm-2")
    finding = world.only()
    assert (finding.kind, finding.severity, finding.since) == (Kind.STREAM_REMADE, Severity.ERROR, applied)
    assert finding.remedy == (
        "run `dynaurora catch-up employees --from 2026-05-20T11:05:00Z --to 2026-05-20T13:05:01Z`"
    )
    assert world.only().remedy == finding.remedy, "it stays"
    for start, end, left in ((-5, 30, 1), (31, 90, 1), (25, 60, 1), (90, 114, 1), (91, 115, 1), (91, 116, 0)):
        losses.note_caught_up(
            world.connection, "employees", applied + timedelta(minutes=start), applied + timedelta(minutes=end)
        )
        assert len(world.look().findings) == left


def test_a_reconciliation_that_left_no_drift_closes_a_loss_and_a_load_does_not(world: World) -> None:
    world.look()
    world.services.stream.label = "2026-05-20T13:00:00.000"
    world.map("esm-2")
    world.connection.execute(
        "INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,"
        " size_bytes, status) VALUES ('employees', 'full', 's3://b/f', now(), %s, 0, 0, 0, 'loaded')",
        [world.now + DAY],
    )
    assert world.kinds() == [Kind.STREAM_REMADE]
    for as_of, repaired, left in (
        (world.now, 3, [Kind.STREAM_REMADE]),
        (world.now + DAY, 2, [Kind.STREAM_REMADE]),
        (world.now + DAY, 3, []),
    ):
        world.connection.execute(
            "INSERT INTO replication.reconciliations (table_name, snapshot, snapshot_time, as_of, status, missing,"
            " extra, different, repaired) VALUES ('employees', 's', now(), %s, 'done', 1, 1, 1, %s)",
            [as_of, repaired],
        )
        assert world.kinds() == left


def test_a_loss_beyond_point_in_time_recovery_asks_for_a_load_and_a_reconciliation(world: World) -> None:
    world.look()
    world.probed(through=world.now - HOUR)
    world.services.stream.label = "2026-05-20T13:00:00.000"
    world.services.stream.restorable_since = world.now - timedelta(minutes=30)
    world.map("esm-2")
    remedy = world.only().remedy
    assert remedy.startswith("point-in-time recovery reaches back to 2026-05-20 11:40:00 UTC only")
    assert "`dynaurora load employees`, then `dynaurora reconcile employees --repair`" in remedy
    world.services.stream.restorable_since = None
    loss, recovery = world.look().findings
    assert "`dynaurora load employees --scan`, then `dynaurora reconcile employees --scan --repair`" in loss.remedy
    assert (recovery.kind, recovery.severity) == (Kind.NO_RECOVERY, Severity.WARN)


def test_a_mapping_that_is_missing_disabled_or_unknown(world: World) -> None:
    world.look()
    seen = world.now
    world.map(state="Disabled")
    finding = world.only()
    assert (finding.kind, finding.severity, finding.since) == (Kind.MAPPING_OFF, Severity.ERROR, seen)
    assert "`aws lambda update-event-source-mapping --uuid esm-1 --enabled`" in finding.remedy
    world.services.lambdas.mappings = []
    assert world.only().kind == Kind.NO_MAPPING
    world.services.lambdas.denied = True
    report = world.look()
    (finding,) = report.findings
    assert (finding.kind, finding.severity) == (Kind.MAPPING_UNKNOWN, Severity.UNKNOWN)
    assert finding.remedy == "grant it lambda:ListEventSourceMappings"
    assert (report.on_failure.count, "lambda:List" in report.on_failure.where) == (None, True)


def test_a_recreated_event_source_mapping_loses_what_is_before_its_start(world: World) -> None:
    world.look()
    world.probed(through=world.now - HOUR)
    world.map("esm-2", start="TRIM_HORIZON")
    assert world.kinds() == [], "it began with everything that the stream still had"
    world.map("esm-3", start="LATEST")
    finding, latest = world.look().findings
    assert "event source mapping esm-3 of r started at LATEST" in latest.what
    assert (finding.kind, finding.since) == (Kind.MAPPING_REMADE, NOW - HOUR + timedelta(minutes=10))
    world.connection.execute("UPDATE replication.losses SET healed_at = now()")
    world.probed(through=world.now - 2 * DAY)
    world.map("esm-4", start="TRIM_HORIZON")
    assert world.kinds() == [Kind.MAPPING_REMADE], "the stream no longer has what was not applied two days ago"


def test_what_waits_is_told_before_it_is_dropped(world: World) -> None:
    waiting = world.now - timedelta(hours=17)
    world.probed(through=waiting, waiting=waiting)
    assert world.kinds() == []
    world.now += HOUR
    finding = world.only()
    assert (finding.kind, finding.since) == (Kind.ABOUT_TO_BE_LOST, waiting)
    assert "the stream drops them at 2026-05-20 19:00:00 UTC" in finding.what
    world.now += 6 * HOUR
    assert world.kinds() == [], "from now on the probe finds it lost"


def test_what_the_probe_has_found_is_told_with_its_command(world: World) -> None:
    for number, kind in enumerate(["gap", "passed", "stuck", "trimmed", "unread"]):
        world.connection.execute(
            "INSERT INTO replication.losses (table_name, kind, since, until, keys_kept) VALUES (%s, %s, %s, %s, %s)",
            [world.mapping.name, kind, NOW - HOUR, NOW - number * HOUR / 10, kind in {"passed", "stuck", "trimmed"}],
        )
    findings = world.look().findings
    assert [finding.kind for finding in findings] == [
        Kind.GAP,
        Kind.PASSED,
        Kind.STUCK,
        Kind.TRIMMED,
        Kind.UNREAD,
    ]
    assert [finding.severity for finding in findings] == [Severity.ERROR] * 4 + [Severity.WARN]
    assert [("are missing" in finding.what) for finding in findings] == [False, True, True, True, False]
    assert all(
        "`dynaurora catch-up employees --from 2026-05-20T10:55:00Z --to 2026-05-20T1" in f.remedy for f in findings
    )
    assert "the errors and the log of the table's Lambda function" in findings[2].remedy


def test_a_command_is_long_enough_to_run_and_ends_where_no_load_cuts_it_short(world: World) -> None:
    world.connection.execute(
        "INSERT INTO replication.losses (table_name, kind, since, until) VALUES (%s, 'gap', %s, %s)",
        [world.mapping.name, NOW, NOW],
    )
    assert "--from 2026-05-20T11:50:01Z --to 2026-05-20T12:05:01Z" in world.only().remedy
    world.connection.execute(
        "INSERT INTO replication.exports (table_name, kind, location, snapshot_time, as_of, item_count, file_count,"
        " size_bytes, status) VALUES ('employees', 'full', 's3://b/f', %s, %s, 0, 0, 0, 'loaded')",
        [NOW + timedelta(minutes=1), NOW],
    )
    assert "--from 2026-05-20T11:55:00Z --to 2026-05-20T12:16:00Z" in world.only().remedy


def test_a_table_created_under_the_name_of_one_deleted_takes_a_load_and_a_reconciliation(world: World) -> None:
    world.services.stream.more = {"TableId": "one"}
    world.look()
    world.services.stream.more = {"TableId": "two"}
    world.services.stream.label = "2026-05-20T13:00:00.000"
    world.map("esm-2")
    finding = world.only()
    assert finding.kind == Kind.TABLE_RECREATED
    assert "rows of the deleted table are still in Aurora" in finding.what
    assert finding.remedy.startswith("run a full load, `dynaurora load employees`, then `dynaurora reconcile employees")
    losses.note_caught_up(world.connection, "employees", NOW - 9 * DAY, NOW + 9 * DAY)
    assert world.kinds() == [Kind.TABLE_RECREATED]


def test_what_the_probe_has_found_of_a_new_stream_is_not_found_again(world: World) -> None:
    world.look()
    world.services.stream.label = "2026-05-20T13:00:00.000"
    world.map("esm-2")
    world.probed(through=world.now)
    assert world.kinds() == []


def test_discarded_batches_that_wait_are_reported(world: World) -> None:
    assert world.look().on_failure.count == 0
    world.services.bucket.objects = {f"aws/lambda/esm-1/shardId-1/2026/05/20/{n}": NOW - n * HOUR for n in range(5)} | {
        "aws/lambda/esm-other/shardId-1/x": NOW - DAY,
        "aws/lambda/esm-1/done/y": NOW - DAY,
    }
    found = world.look().on_failure
    assert (found.count, found.oldest, found.where) == (5, NOW - 4 * HOUR, "s3://given-up/aws/lambda/esm-1/")
    world.services.bucket.denied = True
    assert world.look().on_failure.where == "this process may not list s3://given-up/aws/lambda/esm-1/ (s3:ListBucket)"
    world.services.lambdas.mappings[0]["DestinationConfig"] = {"OnFailure": {"Destination": "arn:aws:sqs:q"}}
    assert world.look().on_failure.where == "they go to a queue or a topic, not to S3"
    del world.services.lambdas.mappings[0]["DestinationConfig"]
    assert world.look().on_failure.where == "none is kept"


def test_a_first_look_finds_the_stream_that_changes_were_applied_from(world: World) -> None:
    mark: list[Any] = ["employees", "w", "2026-05-10T10:00:00.000", NOW - 9 * DAY]
    world.connection.execute(
        "INSERT INTO replication.watermarks (table_name, writer, stream_label, as_of) VALUES (%s, %s, %s, %s)", mark
    )
    finding = world.only()
    assert (finding.kind, finding.since) == (Kind.STREAM_REMADE, NOW - 10 * DAY)


FAULTS: list[tuple[dict[str, Any], Severity, str, str]] = [
    (
        {"FilterCriteria": {"Filters": [{"Pattern": "{}"}]}},
        Severity.ERROR,
        "has FilterCriteria: changes that they exclude are dropped",
        "--uuid esm-1 --filter-criteria '{}'`",
    ),
    ({"FilterCriteriaError": {"ErrorCode": "x"}}, Severity.ERROR, "has FilterCriteria", "--filter-criteria '{}'`"),
    (
        {"FunctionResponseTypes": []},
        Severity.ERROR,
        "lacks ReportBatchItemFailures",
        "--function-response-types ReportBatchItemFailures`",
    ),
    ({"TumblingWindowInSeconds": 60}, Severity.WARN, "a tumbling window of 60 s", "--tumbling-window-in-seconds 0`"),
    (
        {"MaximumRetryAttempts": 3, "DestinationConfig": {}},
        Severity.ERROR,
        "discards batches (after 3 retries) and has no on-failure destination: they are lost",
        "arn:aws:s3:::BUCKET",
    ),
    (
        {"MaximumRecordAgeInSeconds": 600, "DestinationConfig": {}},
        Severity.ERROR,
        "discards batches (when they are 600 s old) and has no on-failure destination",
        "arn:aws:s3:::BUCKET",
    ),
    (
        {"MaximumRetryAttempts": 0, "DestinationConfig": {"OnFailure": {"Destination": "arn:aws:sqs:e:1:q"}}},
        Severity.WARN,
        "to a queue or a topic, which gets their position in the stream but not their records",
        "redrive them within 24 hours",
    ),
    (
        {"MaximumRetryAttempts": 3, "BisectBatchOnFunctionError": False},
        Severity.WARN,
        "one bad record makes Lambda discard the whole batch",
        "--bisect-batch-on-function-error`",
    ),
    ({"MaximumRecordAgeInSeconds": 90_000}, Severity.WARN, "no effect above 86400", "rely on the stream's 24 hours"),
    ({"StartingPosition": "LATEST"}, Severity.WARN, "started at LATEST", "TRIM_HORIZON"),
    (
        {"FunctionArn": "arn:aws:lambda:eu-central-1:111122223333:function:r:7"},
        Severity.WARN,
        "invokes version 7 of the function",
        "--function-name r`",
    ),
    (
        {"LastProcessingResult": "PROBLEM: Function call failed"},
        Severity.WARN,
        "reports: PROBLEM: Function call failed",
        "see the function's log",
    ),
]


@pytest.mark.parametrize(("settings", "severity", "what", "remedy"), FAULTS)
def test_an_event_source_mapping_that_drops_or_alters_changes_is_named(
    world: World, settings: dict[str, Any], severity: Severity, what: str, remedy: str
) -> None:
    world.services.lambdas.mappings[0] |= settings
    finding = world.only()
    assert (finding.kind, finding.severity) == (Kind.MAPPING_FAULT, severity)
    assert finding.what.startswith("event source mapping esm-1 of r ")
    assert what in finding.what
    assert remedy in finding.remedy


def test_an_event_source_mapping_in_other_sizes_is_no_fault(world: World) -> None:
    world.services.lambdas.mappings[0] |= {
        "BatchSize": 1,
        "ParallelizationFactor": 10,
        "MaximumRetryAttempts": 3,
        "MaximumRecordAgeInSeconds": 3600,
        "FilterCriteria": {},
        "FunctionArn": "arn:aws:lambda:eu-central-1:111122223333:function:r:live",
        "LastProcessingResult": "OK",
    }
    assert world.kinds() == []


def second_reader(world: World, **settings: Any) -> None:  # noqa: ANN401 - as the SDK has them
    function = "arn:aws:lambda:eu-central-1:111122223333:function:billing"
    world.services.lambdas.mappings.append(
        {**world.services.lambdas.mappings[0], "UUID": "esm-b", "FunctionArn": function, **settings}
    )


def test_several_readers_of_one_stream_are_told(world: World) -> None:
    second_reader(world)
    finding = world.only()
    assert (finding.kind, finding.severity) == (Kind.CROWDED, Severity.WARN)
    assert "2 event source mappings read the stream (billing, r)" in finding.what
    assert "two readers a shard" in finding.what
    assert "5 reads a second, and a Lambda takes 4" in finding.what
    second_reader(world, State="Disabled")
    world.services.lambdas.mappings[1:2] = []
    assert world.kinds() == [], "one that is disabled reads nothing"


@pytest.mark.parametrize("function", ["r", "arn:aws:lambda:eu-central-1:111122223333:function:r"])
def test_where_the_replicator_is_named_only_its_own_mapping_is_judged(world: World, function: str) -> None:
    world.services.settings = replace(world.services.settings, function=function)
    second_reader(world, FilterCriteria={"Filters": [{}]}, FunctionResponseTypes=[])
    assert world.kinds() == [Kind.CROWDED]
    del world.services.lambdas.mappings[0]
    finding = world.only()
    assert (finding.kind, finding.severity) == (Kind.NO_MAPPING, Severity.ERROR)
    assert finding.what == (
        f"the replicator {function} (DYNAURORA_FUNCTION) does not read the stream: it feeds billing"
    )


def wrote(world: World, function: str, *, table: str = "employees", ago: timedelta = timedelta(0)) -> None:
    """Write to the bookkeeping that an environment of a function applied a batch this long ago."""
    world.connection.execute(
        "INSERT INTO replication.tables (name, source_table) VALUES (%s, %s) ON CONFLICT DO NOTHING", [table, table]
    )
    world.connection.execute(
        "INSERT INTO replication.watermarks (table_name, writer, stream_label, as_of, applied_at)"
        " VALUES (%s, %s, %s, %s, %s)",
        [table, lambda_writer(function, uuid4().hex), world.services.stream.label, NOW, NOW - ago],
    )


def test_another_environments_lambda_on_the_stream_does_not_hide_that_ours_is_off(world: World) -> None:
    """What ours has written here identifies it, without any setting; theirs feeds another database."""
    wrote(world, "r")
    assert world.kinds() == []
    second_reader(world)
    assert world.kinds() == [Kind.CROWDED]
    world.services.lambdas.mappings[0]["State"] = "Disabled"
    finding = world.only()
    assert (finding.kind, finding.severity) == (Kind.MAPPING_OFF, Severity.ERROR)
    assert "`aws lambda update-event-source-mapping --uuid esm-1 --enabled`" in finding.remedy
    del world.services.lambdas.mappings[0]
    finding = world.only()
    assert finding.kind == Kind.NO_MAPPING
    assert finding.what == "the replicator r (which has written the table) does not read the stream: it feeds billing"
    assert "if billing is the replicator now, set DYNAURORA_FUNCTION to it" in finding.remedy


def test_another_environments_mapping_is_not_judged_and_its_failed_batches_are_not_ours(world: World) -> None:
    wrote(world, "r")
    second_reader(world, State="Disabled", FilterCriteria={"Filters": [{}]})
    world.services.bucket.objects = {
        "aws/lambda/esm-b/shardId-1/2026/05/20/x": NOW,
        "aws/lambda/esm-1/shardId-1/2026/05/20/y": NOW,
    }
    report = world.look()
    assert report.findings == []
    assert (report.on_failure.count, report.on_failure.where) == (1, "s3://given-up/aws/lambda/esm-1/")
    assert [reader.mapping_id for reader in report.readers or ()] == ["esm-1"]


def test_a_table_that_nothing_was_applied_to_has_the_function_that_writes_the_others(world: World) -> None:
    second_reader(world)
    world.services.lambdas.mappings[0]["State"] = "Disabled"
    assert world.kinds() == [], "nothing is known, so either may be ours"
    wrote(world, "another", table="orders")
    assert world.kinds() == [], "it does not read this stream: each table may have a function of its own"
    wrote(world, "r", table="orders")
    assert world.kinds() == [Kind.MAPPING_OFF]


def test_a_function_that_another_has_taken_the_place_of_is_not_ours_any_more(world: World) -> None:
    """As in a database that was copied from the other environment's."""
    wrote(world, "billing", ago=2 * DAY)
    second_reader(world)
    world.services.lambdas.mappings[0]["State"] = "Disabled"
    readers = event_source_mappings(world.services.functions, world.services.stream.arn) or []
    assert world.look().readers == readers[1:]
    world.probed(through=world.now)  # otherwise theirs might have applied more than ours began with
    wrote(world, "r")
    assert world.kinds() == [Kind.MAPPING_OFF]


def test_a_keys_only_stream_of_a_global_table_has_a_remedy_of_its_own(world: World) -> None:
    world.services.stream.view_type = "KEYS_ONLY"
    assert "global table" not in world.only().remedy
    world.services.stream.more = {"Replicas": [{"RegionName": "us-east-1"}]}
    assert "is a global table, whose stream DynamoDB does not let you disable" in world.only().remedy


def test_a_customer_managed_key_is_named_where_it_bites(world: World) -> None:
    key = "arn:aws:kms:eu-central-1:111122223333:key/1"
    world.services.stream.more = {"SSEDescription": {"SSEType": "KMS", "KMSMasterKeyArn": key}}
    assert world.kinds() == []
    world.services.lambdas.mappings[0]["LastProcessingResult"] = "PROBLEM: Function call failed"
    assert f"{key}, on which the function's role needs kms:Decrypt" in world.only().remedy
    del world.services.lambdas.mappings[0]["LastProcessingResult"]
    world.services.stream.more["SSEDescription"]["InaccessibleEncryptionDateTime"] = NOW
    finding = world.only()
    assert (finding.kind, finding.severity, finding.since) == (Kind.KEY_UNUSABLE, Severity.ERROR, NOW)
