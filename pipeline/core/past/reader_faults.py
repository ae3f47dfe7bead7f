"""Faults of the event source mappings that read a stream: settings that drop or delay changes.

Invariant: each finding names the event source mapping, its function and the command that repairs it. An *error* loses
changes; a *warning* loses the means of repair, or makes replication late.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.core.past.lost_history import Finding, Kind, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.core.past.lost_history import Reader, Source

# The stream itself keeps records no longer, so a higher maximum age has no effect.
STREAM_SECONDS = 86_400


def reader_faults(source: Source) -> list[Finding]:
    """Return the faults of the readers of a stream that is on."""
    if not source.stream_enabled or source.readers is None:
        return []
    found = [finding for reader in source.readers for finding in [*_dropping(reader), *_bending(source, reader)]]
    return [*found, *_crowded(source)]


def never_delivered(readers: Sequence[Reader]) -> list[str]:
    """Return the reasons why waiting changes may never arrive, however long one waits."""
    return [
        f"event source mapping {reader.mapping_id} has FilterCriteria, and the changes that they exclude never arrive"
        for reader in readers
        if reader.filtered
    ]


def _dropping(reader: Reader) -> list[Finding]:
    found: list[Finding] = []
    if reader.filtered:
        found.append(
            _finding(
                reader,
                Severity.ERROR,
                "has FilterCriteria: changes that they exclude are dropped and never arrive",
                _update(reader, "--filter-criteria '{}'") + ", then reconcile with repair",
            )
        )
    if not reader.reports_failures:
        found.append(
            _finding(
                reader,
                Severity.ERROR,
                "lacks ReportBatchItemFailures: when the replicator stops within a batch, Lambda drops the rest",
                _update(reader, "--function-response-types ReportBatchItemFailures"),
            )
        )
    if reader.gives_up and not reader.on_failure:
        found.append(
            _finding(
                reader,
                Severity.ERROR,
                f"discards batches ({_limits(reader)}) and has no on-failure destination: they are lost",
                "give it a bucket: "
                + _update(reader, '--destination-config \'{"OnFailure": {"Destination": "arn:aws:s3:::BUCKET"}}\''),
            )
        )
    elif reader.gives_up and ":s3:" not in reader.on_failure:
        found.append(
            _finding(
                reader,
                Severity.WARN,
                f"discards batches ({_limits(reader)}) to a queue or a topic, which gets their position in the stream"
                " but not their records: after 24 hours they are lost",
                "redrive them within 24 hours, or give it a bucket: "
                + _update(reader, '--destination-config \'{"OnFailure": {"Destination": "arn:aws:s3:::BUCKET"}}\''),
            )
        )
    return found


def _bending(source: Source, reader: Reader) -> list[Finding]:
    found: list[tuple[str, str]] = []
    if reader.tumbling_seconds:
        found.append(
            (
                f"has a tumbling window of {reader.tumbling_seconds} s: it calls the function without records and"
                " expects a state, which the replicator does not give",
                _update(reader, "--tumbling-window-in-seconds 0"),
            )
        )
    if reader.gives_up and not reader.bisects:
        found.append(
            (
                "does not split a batch that fails: one bad record makes Lambda discard the whole batch",
                _update(reader, "--bisect-batch-on-function-error"),
            )
        )
    if reader.max_age_seconds > STREAM_SECONDS:
        found.append(
            (
                f"has a MaximumRecordAgeInSeconds of {reader.max_age_seconds}, which has no effect above"
                f" {STREAM_SECONDS}: the stream itself drops records after 24 hours",
                "rely on the stream's 24 hours: " + _update(reader, "--maximum-record-age-in-seconds -1"),
            )
        )
    if not reader.from_trim_horizon:
        found.append(
            (
                "started at LATEST: it may have skipped changes made while it was created or updated",
                "create it again with the starting position TRIM_HORIZON (records applied twice change nothing), then"
                f" reconcile {source.name}",
            )
        )
    if reader.function_version:
        found.append(
            (
                f"invokes version {reader.function_version} of the function, so a newer deployment has no effect",
                _update(reader, f"--function-name {reader.function}"),
            )
        )
    if reader.last_result.upper().startswith("PROBLEM"):
        key = (
            f"; the table is encrypted with the customer managed key {source.kms_key}, on which the function's role"
            " needs kms:Decrypt"
            if source.kms_key
            else ""
        )
        found.append((f"reports: {reader.last_result[:200]}", f"see the function's log and errors{key}"))
    return [_finding(reader, Severity.WARN, what, remedy) for what, remedy in found]


def _crowded(source: Source) -> list[Finding]:
    enabled = [reader for reader in [*(source.readers or ()), *source.others] if reader.enabled]
    if len(enabled) < 2:
        return []
    functions = ", ".join(sorted({reader.function for reader in enabled}))
    return [
        Finding(
            Kind.CROWDED,
            Severity.WARN,
            f"{len(enabled)} event source mappings read the stream ({functions}), and so does the probe of each"
            " Dynaurora installation. DynamoDB serves two readers a shard (it advises one for a global table) and 5"
            " reads a second, and a Lambda takes 4: it throttles more, so replication is late and the lag is often"
            " unknown",
            None,
            "let one replicator and one probe read the stream, for example by giving each environment a table of its"
            " own" + ("" if source.function else "; set DYNAURORA_FUNCTION to this deployment's replicator"),
        )
    ]


def _finding(reader: Reader, severity: Severity, what: str, remedy: str) -> Finding:
    named = f"event source mapping {reader.mapping_id}" + (f" of {reader.function}" if reader.function else "")
    return Finding(Kind.MAPPING_FAULT, severity, f"{named} {what}", None, remedy)


def _limits(reader: Reader) -> str:
    limits: list[str] = []
    if reader.retries >= 0:
        limits.append(f"after {reader.retries} retries")
    if 0 <= reader.max_age_seconds <= STREAM_SECONDS:
        limits.append(f"when they are {reader.max_age_seconds} s old")
    return " or ".join(limits)


def _update(reader: Reader, option: str) -> str:
    return f"`aws lambda update-event-source-mapping --uuid {reader.mapping_id} {option}`"
