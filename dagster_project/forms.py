"""What a person fills in to start a job: defaults, descriptions, and checks that run before anything starts.

Invariant: a job's form is checked as a whole when the run is launched, so a wrong value leaves no run behind. The same
classes check each step's configuration when an asset is materialized on its own.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

import dagster as dg
from pydantic import Field, ValidationError, field_validator, model_validator

from pipeline.core.model.mapping import TableMapping
from pipeline.core.spans import HOW_TO_WRITE, parse_span
from pipeline.dynamodb.exports.manifest import SUMMARY_NAME
from pipeline.jobs.pace import CHUNK_SECONDS

MOST_WORKERS = 32
MOST_RUN_WORKERS = 16
MARGIN_OF_LOAD = (
    "How much older than the export's time its rows count, compared with changes from the stream. It covers clocks that"
    " disagree. The default is the mapping's."
)
MARGIN_OF_RECONCILIATION = (
    "How far replication may be behind without a row counting as drift, if no probe says how far it is. It also covers"
    " clocks that disagree. The default is the mapping's."
)


EXPORT_WAIT = (
    "How long to wait for an export, such as 90m or 6h. The export continues after that, and the next try or run"
    " resumes it. Empty: DYNAURORA_EXPORT_WAIT of the code location, or 6h."
)


class ExportWaitChoice(dg.Config):
    """How long to wait for an export."""

    export_wait: str = Field(default="", description=EXPORT_WAIT)

    @property
    def timeout(self) -> timedelta | None:
        """The wait that was asked for, or None for what the settings say."""
        return parse_span(self.export_wait) if self.export_wait else None

    @field_validator("export_wait")
    @classmethod
    def _a_span(cls, value: str) -> str:
        if value and parse_span(value) is None:
            raise ValueError(f"it is not a duration; {HOW_TO_WRITE}")
        return value


class SnapshotChoice(ExportWaitChoice):
    """Which snapshot to use: a new export if both are empty."""

    export_arn: str = Field(
        default="",
        description="ARN of an export that exists, or is still running. Empty: request a new export, and wait for it.",
    )
    manifest: str = Field(
        default="",
        description=f"Location of an export's {SUMMARY_NAME} (s3://… or file:///…), instead of an ARN.",
    )

    new_export: bool = Field(
        default=False,
        description="true: request a new export, even if one that an earlier run requested is under way.",
    )
    accept_other_table: bool = Field(
        default=False,
        description="true: accept the given export even if it is of another account, Region, table name or table id,"
        " because the table was restored, copied or recreated.",
    )
    scan: bool = Field(
        default=False,
        description="true: scan the table, if it cannot be exported. It reads the whole table once, which uses read"
        " capacity.",
    )
    read_capacity: int = Field(default=100, ge=1, description="Read capacity units a second that a scan may use.")

    @property
    def names_one(self) -> bool:
        """Whether one particular snapshot is asked for. If so, a running load of another one will not do."""
        return bool(self.export_arn or self.manifest or self.scan or self.new_export)

    @model_validator(mode="after")
    def _one_usable_choice(self) -> "SnapshotChoice":
        if self.scan and (self.export_arn or self.manifest):
            raise ValueError("both scan and an export are given; give one of them")
        if self.new_export and (self.scan or self.export_arn or self.manifest):
            raise ValueError("new_export is given together with an export or a scan; give one of them")
        if self.export_arn and self.manifest:
            raise ValueError("export_arn and manifest are both given; give one of them, or neither for a new export")
        if self.export_arn and not (self.export_arn.startswith("arn:") and "/export/" in self.export_arn):
            raise ValueError("export_arn is not the ARN of an export: arn:…:dynamodb:…:table/NAME/export/ID")
        is_location = self.manifest.startswith(("s3://", "file:///"))
        if self.manifest and not (is_location and self.manifest.endswith(f"/{SUMMARY_NAME}")):
            raise ValueError(f"manifest is not the location of an export: s3://BUCKET/…/{SUMMARY_NAME} or file:///…")
        return self


class FullLoadChoice(SnapshotChoice):
    """Load a table from an export, while replication continues."""

    margin_seconds: int = Field(ge=1, description=MARGIN_OF_LOAD)
    workers: int = Field(
        default=2,
        ge=1,
        le=MOST_WORKERS,
        description=f"Files loaded at the same time in a run, 1 to {MOST_WORKERS}. Each takes one connection.",
    )
    run_workers: int = Field(
        default=1,
        ge=1,
        le=MOST_RUN_WORKERS,
        description=f"Runs that share the files, 1 to {MOST_RUN_WORKERS}, including this one. Each is a process, task"
        " or pod, as the instance launches runs. For tables that take hours.",
    )


class LoadFilesChoice(dg.Config):
    """Load files of a load that another run leads. That run fills in this form."""

    export_id: int = Field(description="The load's number in `replication.exports`.")
    ticket: int = Field(description="A number that the leading run drew. Once that run is gone, nothing is loaded.")
    workers: int = Field(default=2, ge=1, le=MOST_WORKERS, description="Files loaded at the same time.")


class ReconcileChoice(SnapshotChoice):
    """Compare every row with a snapshot of the source."""

    repair: bool = Field(
        default=False,
        description="true: repair the drift, each row from a consistent read of DynamoDB. false: only report it.",
    )
    margin_seconds: int = Field(ge=1, description=MARGIN_OF_RECONCILIATION)
    chunk_seconds: float = Field(
        default=CHUNK_SECONDS, gt=0, description="How long one statement of the comparison should take."
    )
    max_share: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Share of Aurora's time. 1 compares with several connections. Below 1, one connection works and"
        " rests between statements, so that it is busy for this share of the time.",
    )


class CatchUpChoice(ExportWaitChoice):
    """Apply what was written in the chosen hours."""

    margin_seconds: int = Field(ge=1, description=MARGIN_OF_LOAD)
    workers: int = Field(
        default=2,
        ge=1,
        le=MOST_WORKERS,
        description=f"Files applied at the same time, 1 to {MOST_WORKERS}. Each takes one connection.",
    )


class EventsChoice(dg.Config):
    """Remove old events that the sensors wrote."""

    keep_days: int = Field(default=14, ge=1, description="Days of events to keep, besides the newest of each.")


class PurgeChoice(dg.Config):
    """Remove old tombstones and leftovers."""

    retention_days: int = Field(
        default=30,
        ge=1,
        description="How long tombstones and bookkeeping are kept. Tombstones newer than the newest snapshot that was"
        " loaded whole are never removed.",
    )


class RepointChoice(dg.Config):
    """Make the table that the mapping file names the source of record."""

    dry_run: bool = Field(default=False, description="true: check, and show what would happen; switch nothing.")


class RedriveChoice(dg.Config):
    """Apply the batches that Lambda discarded."""

    prefix: str = Field(
        default="",
        description="Where they are, s3://BUCKET/PREFIX. Empty: DYNAURORA_ON_FAILURE of the code location.",
    )
    queue: str = Field(default="", description="URL of the SQS queue whose messages name them, instead of a prefix.")
    object: str = Field(default="", description="Redrive only this batch, as the table `left` of a run names it.")
    accept_partial: bool = Field(
        default=False,
        description="With `object`: apply the records of a damaged batch that can be read, and move it to `done/`.",
    )

    @model_validator(mode="after")
    def _one_usable_choice(self) -> "RedriveChoice":
        if self.prefix and self.queue:
            raise ValueError("prefix and queue are both given; give one of them")
        if self.prefix and not self.prefix.startswith(("s3://", "file:///")):
            raise ValueError("prefix is not s3://BUCKET/PREFIX")
        if self.accept_partial and not self.object:
            raise ValueError("accept_partial is for one damaged batch; name it in object")
        return self


def full_load_form(mapping: TableMapping) -> type[FullLoadChoice]:
    """Form of a full load, with the mapping's own defaults."""

    class FullLoad(FullLoadChoice):
        margin_seconds: int = Field(default=_seconds(mapping.margin), ge=1, description=MARGIN_OF_LOAD)

    return FullLoad


def reconcile_form(mapping: TableMapping) -> type[ReconcileChoice]:
    """Form of a reconciliation, with the mapping's own defaults."""

    class Reconcile(ReconcileChoice):
        margin_seconds: int = Field(default=_seconds(mapping.margin), ge=1, description=MARGIN_OF_RECONCILIATION)

    return Reconcile


def catch_up_form(mapping: TableMapping) -> type[CatchUpChoice]:
    """Form of a catch-up, with the mapping's own defaults."""

    class CatchUp(CatchUpChoice):
        margin_seconds: int = Field(default=_seconds(mapping.margin), ge=1, description=MARGIN_OF_LOAD)

    return CatchUp


def job_form(form: type[dg.Config], op: str) -> dg.ConfigMapping:
    """Make a form the whole configuration of a job whose only step is `op`. It is checked when the run is launched."""

    def check(values: Mapping[str, Any]) -> dict[str, Any]:
        try:
            form(**values)
        except ValidationError as error:
            wrong = "; ".join(_sentence(problem["loc"], problem["msg"]) for problem in error.errors())
            raise dg.DagsterInvalidConfigError(f"the form has wrong values: {wrong}", [], values) from None
        return {"ops": {op: {"config": dict(values)}}, "loggers": {"console": {}}}  # not what Dagster says to itself

    return dg.ConfigMapping(config_fn=check, config_schema=form.to_config_schema())


def _sentence(where: tuple[int | str, ...], what: str) -> str:
    text = what.removeprefix("Value error, ")
    return f"{'.'.join(map(str, where))}: {text[:1].lower()}{text[1:]}" if where else text


def _seconds(margin: timedelta) -> int:
    return int(margin.total_seconds())
