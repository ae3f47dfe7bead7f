"""Checks of a table's source: is it set up for replication, was history lost, do discarded batches wait.

They are checks of the DynamoDB table, which is never materialized here, so their results stay until they change.

Invariant: they are judged from one report, in the same way by the sensor and when launched by hand. Each result names
the next step. What this process may not look at is reported as not known.
"""

# No `from __future__ import annotations`: Dagster reads the annotations of what is defined in a function.
from collections.abc import Iterator, Sequence

import dagster as dg

from dagster_project.console import Links, source_links
from dagster_project.keys import TableKeys
from dagster_project.resources import ServicesResource
from pipeline.core.model.mapping import TableMapping
from pipeline.core.past.lost_history import CONFIGURATION, Finding, Severity
from pipeline.jobs.probe.lost_history import HistoryReport, OnFailure, lost_history_report

CONFIGURED, LOST, GIVEN_UP = "source_configuration", "lost_history", "on_failure_waiting"


def history_checks(mapping: TableMapping) -> dg.AssetChecksDefinition:
    """Define the three checks as one step that looks once."""

    @dg.multi_asset_check(name=f"{mapping.name}__source_checks", specs=history_specs(mapping))
    def checks(dynaurora: ServicesResource) -> Iterator[dg.AssetCheckResult]:
        yield from judge_history(TableKeys(mapping.name), lost_history_report(dynaurora.services, mapping))

    return checks


def history_specs(mapping: TableMapping) -> list[dg.AssetCheckSpec]:
    """Describe the checks."""
    keys = TableKeys(mapping.name)
    return [
        dg.AssetCheckSpec(
            CONFIGURED,
            asset=keys.dynamodb_table,
            description=f"The stream of `{mapping.table}` is on and carries new images, a Lambda function reads it, and"
            " point-in-time recovery is on, so that lost changes can be caught up. If it fails, the result has the"
            " command. While the stream is off, or no function reads it, changes will be lost. The result links into"
            " the AWS console: the table, the function, its event source mapping, its log.",
        ),
        dg.AssetCheckSpec(
            LOST,
            asset=keys.dynamodb_table,
            description="No change was lost: dropped by the stream before it was applied, or made while the stream or"
            " its event source mapping was recreated. If some were, run the catch-up that the result names (or launch"
            f" `{mapping.name}_catch_up` over those hours; if it names a load, also `{keys.reconcile_job}` with"
            " `repair: true`). The check passes again once one has covered that time.",
        ),
        dg.AssetCheckSpec(
            GIVEN_UP,
            asset=keys.dynamodb_table,
            description="No batch is waiting that Lambda discarded after its retries. If some are, repair what the"
            f" function fails on (see its log), then run `dynaurora redrive {mapping.name}`.",
        ),
    ]


def judge_history(keys: TableKeys, report: HistoryReport) -> list[dg.AssetCheckResult]:
    """Judge a report: configuration, lost history, discarded batches."""
    configuration = [finding for finding in report.findings if finding.kind in CONFIGURATION]
    history = [finding for finding in report.findings if finding.kind not in CONFIGURATION]
    return [
        _result(
            keys,
            CONFIGURED,
            configuration,
            "stream, event source mapping and recovery are set up correctly",
            source_links(report.table_arn, report.readers),
        ),
        _result(keys, LOST, history, "no lost history is known", {}),
        _given_up(keys, report.on_failure),
    ]


def _result(keys: TableKeys, name: str, findings: Sequence[Finding], well: str, links: Links) -> dg.AssetCheckResult:
    failed = [finding for finding in findings if finding.severity is not Severity.UNKNOWN]
    worst = any(finding.severity is Severity.ERROR for finding in failed)
    return dg.AssetCheckResult(
        passed=not failed,
        asset_key=keys.dynamodb_table,
        check_name=name,
        severity=dg.AssetCheckSeverity.ERROR if worst else dg.AssetCheckSeverity.WARN,
        description="; ".join(f"{finding.what}: {finding.remedy}" for finding in findings) or well,
        metadata={
            "findings": dg.MetadataValue.int(len(failed)),
            **({"details": dg.MetadataValue.table([_record(f) for f in findings], _SCHEMA)} if findings else {}),
            **links,
        },
    )


_SCHEMA = dg.TableSchema(
    [
        dg.TableColumn("finding"),
        dg.TableColumn("severity"),
        dg.TableColumn("what"),
        dg.TableColumn("since"),
        dg.TableColumn("next step"),
    ]
)


def _record(finding: Finding) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "finding": finding.kind.value,
            "severity": finding.severity.value,
            "what": finding.what,
            "since": f"{finding.since:%Y-%m-%d %H:%M:%S} UTC" if finding.since else "",
            "next step": finding.remedy,
        }
    )


def _given_up(keys: TableKeys, waiting: OnFailure) -> dg.AssetCheckResult:
    metadata: dict[str, dg.MetadataValue] = {"where": dg.MetadataValue.text(waiting.where)}
    if waiting.count is None:
        description = f"not known: {waiting.where}"
    elif not waiting.count:
        description = "no discarded batch is waiting"
    else:
        at_least = "at least " if waiting.more else ""
        description = (
            f"{at_least}{waiting.count} discarded batches wait in {waiting.where}, the oldest from"
            f" {waiting.oldest:%Y-%m-%d %H:%M:%S} UTC: run `dynaurora redrive {keys.name}`"
        )
    if waiting.count is not None:
        metadata["objects_waiting"] = dg.MetadataValue.int(waiting.count)
    if waiting.oldest is not None:
        metadata["oldest"] = dg.MetadataValue.timestamp(waiting.oldest)
    return dg.AssetCheckResult(
        passed=not waiting.count,
        asset_key=keys.dynamodb_table,
        check_name=GIVEN_UP,
        severity=dg.AssetCheckSeverity.ERROR,
        description=description,
        metadata=metadata,
    )
