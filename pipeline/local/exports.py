"""DynamoDB's export calls, which ministack only pretends to support, served in front of it; everything else passes
through.

It serves ExportTableToPointInTime, DescribeExport and ListExports, corrects DescribeContinuousBackups (ministack gives
the present moment as the earliest restorable one), and proxies the rest.

Invariant: a full export has the table at exactly its ExportTime while writes continue, and an incremental one exactly
the changes written in [from, to). If that cannot be proven, the request is refused or the export fails; it is never
approximated. `snapshot` says how. The only price: if the stream carries no old images, a request without ExportTime is
answered after a scan, because the moment is after the scan.

All departures from AWS: exports take seconds; the shortest window is a setting; KMS keys are recorded, not used; Ion is
refused, and so is every FilterSpecification except a projection to whole attributes; what the stream has recorded, not
35 days, limits which past can be exported (or what a Kinesis destination has, see `change_log`).
"""

import asyncio
import json
import re
import secrets
import threading
import time
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from pipeline.local.change_log import ChangeLogTail, change_log_arn
from pipeline.local.export_files import Destination, Written, write_full, write_incremental, write_started
from pipeline.local.export_projection import project, projected_attributes
from pipeline.local.history import PastChange, UnprovableError, changes_between, state_at
from pipeline.local.http_messages import Head
from pipeline.local.proxy import WriteGate
from pipeline.local.raw_aws import AwsError, Json, RawAws
from pipeline.local.snapshot import (
    KeptCuts,
    StreamTail,
    Table,
    cut_now,
    describe_table,
    past_changes,
    rewindable_cut,
)

CREDENTIAL = re.compile(rb"Credential=([^/]+)/[^/]+/([^/]+)/")
ERROR_PREFIX = "com.amazonaws.dynamodb.v20120810#"
TOKEN_LIFETIME_SECONDS = 8 * 3600
LONGEST_WINDOW_MS = 24 * 3600 * 1000
T = TypeVar("T")
SUMMARY_FIELDS = ("ExportArn", "ExportStatus", "ExportType")


@dataclass
class Export:
    """One export: what was asked, and its description as DescribeExport gives it."""

    request: Json
    description: Json
    asked_at: float = field(default_factory=time.time)


@dataclass
class PastOfTable:
    """The records of one stream read so far, for exports that look back."""

    tail: StreamTail | ChangeLogTail
    changes: list[PastChange] = field(default_factory=list[PastChange])


_HOLD_LOOK_SECONDS = 0.05


class ExportService:
    """The exports of one ministack. Requests are handled one after another; files are written in the background."""

    def __init__(
        self,
        upstream_port: int,
        gate: WriteGate,
        *,
        delay_seconds: float,
        minimum_window_seconds: float,
        recovery_reach_seconds: float = 0.0,
        hold: Path | None = None,
    ) -> None:
        """`delay_seconds`: how long an export stays IN_PROGRESS at least, so that a person sees it. While the file
        `hold` exists, it stays so.

        `recovery_reach_seconds`: how far point-in-time recovery reaches back before it was enabled. Without it, a table
        created a minute ago has no hour to catch up; with it, it has hours in which nothing was written.
        """
        self._port = upstream_port
        self._gate = gate
        self._delay_seconds = delay_seconds
        self._hold = hold
        self._minimum_window_ms = int(minimum_window_seconds * 1000)
        self._reach_ms = int(recovery_reach_seconds * 1000)
        self._exports: dict[str, Export] = {}
        self._pasts: dict[str, PastOfTable] = {}
        self._kept_cuts: KeptCuts = {}
        self._enabled_ms: dict[str, int] = {}
        self._one_request = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._threads = ThreadPoolExecutor(max_workers=8, thread_name_prefix="export")

    def answers(self) -> dict[str, Callable[[Head, bytes], Awaitable[tuple[int, bytes]]]]:
        """The operations answered here, for the proxy."""
        operations = {
            "ExportTableToPointInTime": self.export_table,
            "DescribeExport": self.describe_export,
            "ListExports": self.list_exports,
            "DescribeContinuousBackups": self.describe_continuous_backups,
            "UpdateContinuousBackups": self.update_continuous_backups,
        }
        return {f"DynamoDB_20120810.{name}": self._answer(operation) for name, operation in operations.items()}

    def _answer(
        self, operation: Callable[[RawAws, Json], Json]
    ) -> Callable[[Head, bytes], Awaitable[tuple[int, bytes]]]:
        def call(head: Head, body: bytes) -> tuple[int, bytes]:
            scope = CREDENTIAL.search(head.value(b"authorization"))
            access_key, region = (part.decode() for part in scope.groups()) if scope else ("test", "us-east-1")
            try:
                return 200, json.dumps(operation(RawAws(self._port, access_key, region), json.loads(body))).encode()
            except AwsError as error:
                answer = {"__type": ERROR_PREFIX + error.code, "message": error.message}
                return 400, json.dumps(answer).encode()

        async def answer(head: Head, body: bytes) -> tuple[int, bytes]:
            return await self._loop.run_in_executor(self._threads, call, head, body)

        return answer

    def export_table(self, aws: RawAws, request: Json) -> Json:
        """ExportTableToPointInTime."""
        with self._one_request:
            repeated = self._repeated(request)
            if repeated is not None:
                return {"ExportDescription": repeated}
            table = _exportable(aws, request)
            export = self._new_export(table, request)
            write = self._prepare(aws, table, export)
            self._exports[export.description["ExportArn"]] = export
            answer = dict(export.description)
            self._threads.submit(self._run, aws, export, write).add_done_callback(partial(_settle_broken, export))
            return {"ExportDescription": answer}

    def describe_export(self, _aws: RawAws, request: Json) -> Json:
        """DescribeExport."""
        export = self._exports.get(request.get("ExportArn", ""))
        if export is None:
            raise AwsError("ExportNotFoundException", f"Export not found: {request.get('ExportArn')}")
        return {"ExportDescription": dict(export.description)}

    def list_exports(self, _aws: RawAws, request: Json) -> Json:
        """ListExports, newest last."""
        arn = request.get("TableArn")
        found = [e.description for e in self._exports.values() if arn is None or e.description["TableArn"] == arn]
        first = int(request.get("NextToken") or 0)
        end = first + int(request.get("MaxResults") or 25)
        answer: Json = {"ExportSummaries": [{name: d[name] for name in SUMMARY_FIELDS} for d in found[first:end]]}
        return answer | ({"NextToken": str(end)} if end < len(found) else {})

    def describe_continuous_backups(self, aws: RawAws, request: Json) -> Json:
        """DescribeContinuousBackups with the window that can be exported."""
        answer = aws.dynamodb("DescribeContinuousBackups", request)
        recovery: Json = answer["ContinuousBackupsDescription"]["PointInTimeRecoveryDescription"]
        if recovery["PointInTimeRecoveryStatus"] == "ENABLED":
            table = describe_table(aws, request["TableName"])
            earliest_ms = self._enabled_ms.get(table.arn, table.created_ms)
            recovery |= {
                "EarliestRestorableDateTime": earliest_ms / 1000,
                "LatestRestorableDateTime": time.time(),
            }
        return answer

    def update_continuous_backups(self, aws: RawAws, request: Json) -> Json:
        """UpdateContinuousBackups, recording since when."""
        answer = aws.dynamodb("UpdateContinuousBackups", request)
        if request["PointInTimeRecoverySpecification"].get("PointInTimeRecoveryEnabled"):
            table = describe_table(aws, request["TableName"])
            self._enabled_ms.setdefault(table.arn, _now_ms() - self._reach_ms)
        return answer

    def _repeated(self, request: Json) -> Json | None:
        """The export this request repeats by its ClientToken, if any."""
        token = request.get("ClientToken")
        for export in self._exports.values():
            fresh = time.time() - export.asked_at < TOKEN_LIFETIME_SECONDS
            if token is not None and fresh and export.request.get("ClientToken") == token:
                if export.request != request:
                    raise AwsError("ExportConflictException", "The client token was used with other parameters")
                return dict(export.description)
        return None

    def _new_export(self, table: Table, request: Json) -> Export:
        now = time.time()
        description: Json = {
            "ExportArn": f"{table.arn}/export/{int(now * 1000):014d}-{secrets.token_hex(4)}",
            "ExportStatus": "IN_PROGRESS",
            "StartTime": now,
            "TableArn": table.arn,
            "TableId": table.table_id,
            "ExportFormat": "DYNAMODB_JSON",
            "ExportType": request.get("ExportType") or "FULL_EXPORT",
            "S3SseAlgorithm": request.get("S3SseAlgorithm") or "AES256",
        }
        for name in ("ClientToken", "S3Bucket", "S3BucketOwner", "S3Prefix", "S3SseKmsKeyId", "FilterSpecification"):
            if request.get(name):
                description[name] = request[name]
        return Export(request, description)

    def _prepare(self, aws: RawAws, table: Table, export: Export) -> Callable[[], Written]:
        """Take what the export needs from the table now; the result writes its files."""
        description = export.description
        to = Destination(
            bucket=description["S3Bucket"],
            prefix=description.get("S3Prefix"),
            export_arn=description["ExportArn"],
            sse_algorithm=description["S3SseAlgorithm"],
            sse_kms_key_id=description.get("S3SseKmsKeyId"),
        )
        if description["ExportType"] == "INCREMENTAL_EXPORT":
            return self._prepare_incremental(aws, table, export, to)
        at_ms, items = self._full(aws, table, export)
        description["ExportTime"] = at_ms / 1000
        started = int(description["StartTime"] * 1000)
        kept = projected_attributes(export.request)
        return lambda: write_full(aws, to, table, project(items(), kept), (started, _now_ms(), at_ms))

    def _full(self, aws: RawAws, table: Table, export: Export) -> tuple[int, Callable[[], dict[str, str]]]:
        """The moment of a full export, and the function that returns its items."""
        asked = export.request.get("ExportTime")
        if asked is not None:
            at_ms = self._past_moment(table, asked, "ExportTime")
            past = self._items_at(aws, table, at_ms)
            return at_ms, lambda: past
        if table.has_old_images:
            at_ms, items = rewindable_cut(aws, table, self._held, self._kept_cuts)
        else:
            cut = cut_now(aws, table, self._held)
            at_ms, items = cut.at_ms, lambda: cut.items
        export.description["StartTime"] = at_ms / 1000
        return at_ms, items

    def _prepare_incremental(self, aws: RawAws, table: Table, export: Export, to: Destination) -> Callable[[], Written]:
        asked: Json = export.request.get("IncrementalExportSpecification") or {}
        from_ms = self._past_moment(table, asked.get("ExportFromTime"), "ExportFromTime")
        to_ms = self._past_moment(table, asked.get("ExportToTime"), "ExportToTime")
        if not self._minimum_window_ms <= to_ms - from_ms <= LONGEST_WINDOW_MS or to_ms <= from_ms:
            minutes = self._minimum_window_ms // 60000
            raise AwsError(
                "InvalidExportTimeException", f"The export period must be {minutes} minutes to 24 hours long"
            )
        view: str = asked.get("ExportViewType") or "NEW_AND_OLD_IMAGES"
        export.description["IncrementalExportSpecification"] = {
            "ExportFromTime": from_ms / 1000,
            "ExportToTime": to_ms / 1000,
            "ExportViewType": view,
        }
        history = self._history(aws, table)
        changes = _provable(lambda: changes_between(history, from_ms, to_ms, with_old=view == "NEW_AND_OLD_IMAGES"))
        started = int(export.description["StartTime"] * 1000)
        return lambda: write_incremental(aws, to, table, changes, (started, _now_ms(), from_ms, to_ms), view)

    def _past_moment(self, table: Table, seconds: float | None, name: str) -> int:
        if seconds is None:
            raise AwsError("ValidationException", f"{name} is required for this export type")
        moment_ms = int(seconds * 1000)
        earliest_ms = min(table.created_ms, self._enabled_ms.get(table.arn, table.created_ms))
        if not earliest_ms <= moment_ms <= _now_ms():
            raise AwsError("InvalidExportTimeException", f"{name} is outside of the point in time recovery window")
        return moment_ms

    def _items_at(self, aws: RawAws, table: Table, at_ms: int) -> dict[str, str]:
        cut = cut_now(aws, table, self._held)
        history = self._history(aws, table)
        # Records after the cut are not in the cut's items, and are not needed: they are later than any past
        # moment.
        return _provable(lambda: state_at(cut.items, (c for c in history if c.at_ms < cut.at_ms), at_ms))

    def _history(self, aws: RawAws, table: Table) -> list[PastChange]:
        """Every change since we first looked back, in order: from a Kinesis destination, or from the stream."""
        log_arn = change_log_arn(aws, table.name)
        if log_arn is not None:
            return self._read_on(table, log_arn, lambda: ChangeLogTail(aws, log_arn))
        if table.stream_arn is None or not table.has_new_images:
            raise AwsError(
                "InvalidExportTimeException",
                "Without a stream of new images the past cannot be exported locally",
            )
        stream_arn = table.stream_arn
        return self._read_on(table, stream_arn, lambda: StreamTail(aws, stream_arn, "TRIM_HORIZON"))

    def _read_on(
        self, table: Table, stream_arn: str, opened: Callable[[], StreamTail | ChangeLogTail]
    ) -> list[PastChange]:
        past = self._pasts.get(stream_arn)
        if past is None:
            past = PastOfTable(opened())
            past.tail.open()
            self._pasts[stream_arn] = past
        past.changes += past_changes(table, past.tail.read())
        return past.changes

    @contextmanager
    def _held(self) -> Generator[None]:
        """Hold the gate, which belongs to the event loop, from a thread."""
        held, release = threading.Event(), asyncio.Event()

        async def hold() -> None:
            async with self._gate.held():
                held.set()
                await release.wait()

        holding = asyncio.run_coroutine_threadsafe(hold(), self._loop)
        held.wait()
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(release.set)
            holding.result()

    def _run(self, aws: RawAws, export: Export, write: Callable[[], Written]) -> None:
        """Write an export's files and finish its description."""
        description = export.description
        bucket: str = description["S3Bucket"]
        to_try = Destination(bucket, description.get("S3Prefix"), description["ExportArn"], "AES256", None)
        try:
            write_started(aws, to_try)
            time.sleep(self._delay_seconds)
            while self._hold and self._hold.exists():
                time.sleep(_HOLD_LOOK_SECONDS)
            written = write()
        except AwsError as error:
            code = "S3NoSuchBucket" if error.code == "NoSuchBucket" else error.code
            outcome: Json = {"ExportStatus": "FAILED", "FailureCode": code, "FailureMessage": error.message}
        except OSError as error:
            outcome = {"ExportStatus": "FAILED", "FailureCode": "UNKNOWN", "FailureMessage": str(error)}
        else:
            outcome = {
                "ExportStatus": "COMPLETED",
                "ExportManifest": written.manifest_key,
                "ItemCount": written.item_count,
            }
            outcome["BilledSizeBytes"] = written.billed_size_bytes
        # One assignment, so that no reader sees COMPLETED without its manifest.
        export.description = {**description, **outcome, "EndTime": time.time()}


def _settle_broken(export: Export, run: Future[None]) -> None:
    """A defect of ours must not leave an export IN_PROGRESS forever."""
    error = run.exception()
    if error is not None:
        outcome = {"ExportStatus": "FAILED", "FailureCode": "UNKNOWN", "FailureMessage": repr(error)}
        export.description = {**export.description, **outcome, "EndTime": time.time()}


def _exportable(aws: RawAws, request: Json) -> Table:
    """The table of an export request, after the checks that come before all else."""
    if (request.get("ExportFormat") or "DYNAMODB_JSON") != "DYNAMODB_JSON":
        raise AwsError("ValidationException", "The local stack writes DYNAMODB_JSON only")
    if projected_attributes(request) and request.get("ExportType") == "INCREMENTAL_EXPORT":
        raise AwsError("ValidationException", "The local stack projects full exports only")
    name = str(request.get("TableArn", "")).rpartition(":table/")[2].partition("/")[0]
    try:
        table = describe_table(aws, name)
        backups = aws.dynamodb("DescribeContinuousBackups", {"TableName": name})["ContinuousBackupsDescription"]
    except AwsError as error:
        if error.code in ("ResourceNotFoundException", "ValidationException"):
            raise AwsError("TableNotFoundException", f"Table not found: {request.get('TableArn')}") from error
        raise
    if backups["PointInTimeRecoveryDescription"]["PointInTimeRecoveryStatus"] != "ENABLED":
        raise AwsError(
            "PointInTimeRecoveryUnavailableException",
            f"Point in time recovery is not enabled for table {name}",
        )
    return table


def _provable(tell: Callable[[], T]) -> T:
    try:
        return tell()
    except UnprovableError as error:
        raise AwsError("InvalidExportTimeException", f"The local stack cannot tell this past: {error}") from error


def _now_ms() -> int:
    return int(time.time() * 1000)
