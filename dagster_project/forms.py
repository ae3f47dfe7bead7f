"""What a person fills in to start a job: defaults, descriptions, and checks that run before anything starts.

Invariant: a job's form is checked whole when the run is launched, so a wrong value leaves no run behind. The same
classes check each step's configuration when an asset is materialized on its own.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
import dagster as dg
from pydantic import Field, model_validator

from dagster_project.keys import TableKeys
from pipeline.core.mapping import TableMapping
from pipeline.dynamodb.manifest import SUMMARY_NAME

MOST_WORKERS = 32


class SnapshotChoice(dg.Config):
    """Which snapshot to use: a new export when both are empty."""

    export_arn: str = Field(
        default="",
        description="ARN of an export that exists, or is still running. Empty: request a new export, and wait for it.",
    )
    manifest: str = Field(
        default="",
        description=f"Location of an export's {SUMMARY_NAME} (s3://… or file:///…), in place of an ARN.",
    )

    @model_validator(mode="after")
    def _one_usable_choice(self) -> "SnapshotChoice":
        if self.export_arn and self.manifest:
            raise ValueError("export_arn and manifest are both given; give one of them, or neither for a new export")
        if self.export_arn and not (self.export_arn.startswith("arn:") and "/export/" in self.export_arn):
            raise ValueError("export_arn is not the ARN of an export: arn:…:dynamodb:…:table/NAME/export/ID")
        is_location = self.manifest.startswith(("s3://", "file:///"))
        if self.manifest and not (is_location and self.manifest.endswith(f"/{SUMMARY_NAME}")):
            raise ValueError(f"manifest is not the location of an export: s3://BUCKET/…/{SUMMARY_NAME} or file:///…")
        return self


class LoadChoice(dg.Config):
    """How to load."""

    margin_seconds: int | None = Field(
        default=None,
        ge=1,
        description="How much older than the export's time its rows count as, against changes from the stream;"
        " covers what clocks disagree by. Empty: the mapping's margin.",
    )
    workers: int = Field(
        default=2,
        ge=1,
        le=MOST_WORKERS,
        description=f"Files loaded side by side, 1 to {MOST_WORKERS}; each takes one connection.",
    )


class ReconcileChoice(SnapshotChoice):
    """What to compare with, and what to do about drift."""

    repair: bool = Field(
        default=False,
        description="true: mend the drift, each row from a consistent read of DynamoDB. false: report it.",
    )
    margin_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Changes this close to the snapshot's time count as in flight. Empty: the mapping's margin.",
    )


def full_load_form(mapping: TableMapping) -> dg.ConfigMapping:
    """Form of a full load: one flat set of fields for its two steps."""
    keys, margin = TableKeys(mapping.name), int(mapping.margin.total_seconds())

    class FullLoad(SnapshotChoice, LoadChoice):
        """Load the table from an export while replication goes on."""

        margin_seconds: int = Field(  # type: ignore[assignment]  # narrows None away: here the default is known
            default=margin, ge=1, description=LoadChoice.model_fields["margin_seconds"].description
        )

    @dg.config_mapping
    def steps(val: FullLoad) -> dg.RunConfig:
        return dg.RunConfig(
            ops={
                keys.op(keys.s3_export): SnapshotChoice(export_arn=val.export_arn, manifest=val.manifest),
                keys.op(keys.aurora_table): LoadChoice(margin_seconds=val.margin_seconds, workers=val.workers),
            }
        )

    return steps


def reconcile_form(mapping: TableMapping) -> dg.ConfigMapping:
    """Form of a reconciliation."""
    keys, margin = TableKeys(mapping.name), int(mapping.margin.total_seconds())

    class Reconcile(ReconcileChoice):
        """Compare every row with a snapshot of the source."""

        margin_seconds: int = Field(  # type: ignore[assignment]  # narrows None away: here the default is known
            default=margin, ge=1, description=ReconcileChoice.model_fields["margin_seconds"].description
        )

    @dg.config_mapping
    def steps(val: Reconcile) -> dg.RunConfig:
        return dg.RunConfig(ops={keys.op(keys.reconciliation): ReconcileChoice(**val.model_dump())})

    return steps
