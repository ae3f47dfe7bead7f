"""Redrive: apply the batches that Lambda discarded, and mark them as done.

Each is applied as the Lambda function would have applied it, at the positions of its records, so a batch that comes a
week late changes nothing that is newer. Then it is marked: an object is moved to `done/`, a message is deleted. If a
redrive is killed between the two, the next one applies the batch again, which changes nothing.

Invariant: a batch that cannot be applied stays in place and is reported with the reason and the next step; the others
are applied.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from pipeline.aurora.bookkeeping.watermarks import REDRIVE_WRITER
from pipeline.core.errors import ConfigurationError, TerminalError, TransientError
from pipeline.core.exports.windows import SHORTEST
from pipeline.core.streams.damaged_batches import salvage
from pipeline.core.streams.failed_batches import parse_failed_batch
from pipeline.dynamodb.errors import translating
from pipeline.dynamodb.exports.objects import MissingObjectError, join_location
from pipeline.dynamodb.streams.stream_ranges import TrimmedError, read_range
from pipeline.jobs.replicate import Replicator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.streams.failed_batches import FailedBatch
    from pipeline.core.streams.stream_records import StreamRecord
    from pipeline.jobs.services import Services

DONE = "done"
# How long applying one batch may take, including retries while the database is away.
_BATCH_SECONDS = 120.0
_MESSAGES_AT_ONCE = 10
# What the code raises when a document or record has an unforeseen form.
_UNFORESEEN = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
# How long a message stays hidden from other readers while this process works on it.
_HIDDEN_SECONDS = 300


@dataclass(frozen=True, slots=True)
class Left:
    """A batch that stays in place."""

    location: str
    reason: str
    next_step: str | None


@dataclass(slots=True)
class RedriveReport:
    """What a redrive did. `records` times their targets = `applied` + `stale` + `rejected`, except ignored ones."""

    tables: tuple[str, ...]
    batches: int = 0
    """Batches that were applied and marked as done."""
    records: int = 0
    applied: int = 0
    stale: int = 0
    deleted: int = 0
    rejected: int = 0
    ignored: int = 0
    partial: list[Left] = field(default_factory=list[Left])
    """Damaged batches that were marked as done after their readable records were applied."""
    read_again: int = 0
    """Batches whose records were read from the stream again, because only a description of them was kept."""
    of_other_tables: int = 0
    """Batches of tables that this redrive does not cover."""
    left: list[Left] = field(default_factory=list[Left])
    seconds: float = 0.0


def redrive(
    services: Services,
    mappings: Sequence[TableMapping],
    *,
    prefix: str | None = None,
    queue_url: str | None = None,
    only: str | None = None,
    accept_partial: bool = False,
    on_progress: Callable[[int], None] | None = None,
) -> RedriveReport:
    """Apply the discarded batches of the mappings' tables under `prefix` (default: the setting's), or in a queue.

    `only` names one object, as `left` names it or by its key. For that one, `accept_partial` applies the records that
    can be read although others are gone. `on_progress` gets the number of batches looked at. Raises TransientError
    when the database or AWS is away; what was marked until then stays done.
    """
    started = time.monotonic()
    if accept_partial and not only:
        raise ConfigurationError(
            "redriving: a damaged batch can only be accepted by its name", hint="name it with --object"
        )
    run = _Run(services, {mapping.table: mapping for mapping in mappings}, on_progress, only, accept_partial)
    replicator = Replicator(
        mappings,
        lambda: services.connect("dynaurora redrive", needs_session=False),
        writer=REDRIVE_WRITER,
        connect_again=False,
        with_key=services.with_key,
    )
    with closing(replicator):
        run.replicator = replicator
        if queue_url:
            run.queue(queue_url)
        else:
            run.objects(*split_prefix(prefix or services.settings.on_failure))
    run.report.seconds = time.monotonic() - started
    return run.report


def split_prefix(location: str | None) -> tuple[str, str]:
    """Split `s3://bucket`, `s3://bucket/prefix` or `file:///folder/` into bucket and prefix."""
    if location is None:
        raise ConfigurationError(
            "redriving: it is not known where discarded batches are kept",
            hint="set DYNAURORA_ON_FAILURE, or give --prefix s3://BUCKET/PREFIX (the stack's on-failure bucket), or"
            " --queue URL",
        )
    if location.startswith("s3://") and location != "s3://":
        bucket, _, prefix = location.removeprefix("s3://").partition("/")
        return bucket, prefix
    if location.startswith("file:///"):
        return "", location.removeprefix("file:///")
    raise ConfigurationError(
        f"redriving: {location} is neither s3://BUCKET/PREFIX nor file:///FOLDER/",
        hint="give the bucket and the prefix",
    )


def done_key(key: str, prefix: str) -> str:
    """Return the key for an object that is done: outside `aws/lambda/`, if that is in it, where Lambda writes."""
    at = key.find("aws/lambda/")
    at = len(prefix.rpartition("/")[0]) + ("/" in prefix) if at < 0 else at
    return f"{key[:at]}{DONE}/{key[at:]}"


def waiting(services: Services, location: str) -> Iterator[str]:
    """Yield the keys under a location that are not done."""
    bucket, prefix = split_prefix(location)
    for key in services.store(location).keys(bucket, prefix):
        if not is_done(key, prefix):
            yield key


def is_done(key: str, prefix: str) -> bool:
    """Whether an object under a prefix was marked as done."""
    return DONE in key[len(prefix) :].split("/")[:-1] or DONE in prefix.split("/")


@dataclass
class _Run:
    """One redrive in progress."""

    services: Services
    mappings: dict[str, TableMapping]
    on_progress: Callable[[int], None] | None
    only: str | None = None
    accept_partial: bool = False
    report: RedriveReport = field(init=False)
    replicator: Replicator = field(init=False)
    seen: int = 0

    def __post_init__(self) -> None:
        self.report = RedriveReport(tuple(mapping.name for mapping in self.mappings.values()))

    def objects(self, bucket: str, prefix: str) -> None:
        """Apply the objects under a prefix."""
        location = join_location(bucket, prefix)
        store = self.services.store(location)
        found = False
        for key in waiting(self.services, location):
            if self.only and self.only not in (key, join_location(bucket, key)):
                continue
            found = True
            try:
                content = store.read(bucket, key)
            except MissingObjectError:  # another redrive has marked it
                continue
            if self._settle(join_location(bucket, key), content):
                try:
                    store.move(bucket, key, done_key(key, prefix))
                except MissingObjectError:
                    continue
        if self.only and not found:
            raise ConfigurationError(
                f"redriving: no object {self.only} waits below {location}",
                hint="name it as `dynaurora redrive` does in its lines `left:`; objects that are done are under done/",
            )

    def queue(self, url: str) -> None:
        """Apply the messages of a queue. A message that is left becomes visible again when its hidden time is over."""
        sqs = self.services.queues
        while True:
            with translating("receiving messages of the queue"):
                answer: Any = sqs.receive_message(
                    QueueUrl=url, MaxNumberOfMessages=_MESSAGES_AT_ONCE, VisibilityTimeout=_HIDDEN_SECONDS
                )
            messages: list[dict[str, Any]] = answer.get("Messages", [])
            if not messages:
                return
            for message in messages:
                if self._settle(f"message {message['MessageId']}", message["Body"].encode()):
                    with translating("deleting a message of the queue"):
                        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])

    def _settle(self, where: str, content: bytes) -> bool:
        """Apply one batch; False if it stays. Raises TransientError, and TerminalError for a refused connection."""
        self.seen += 1
        if self.on_progress:
            self.on_progress(self.seen)
        self.replicator.open()
        try:
            if self.accept_partial:
                return self._settle_partial(where, content)
            batch = parse_failed_batch(content)
            if batch.table not in self.mappings:
                self.report.of_other_tables += 1
                return False
            self._apply(batch)
        except _UNFORESEEN as error:
            # The error's text may quote a value; the batches after it are still applied.
            reason = f"reading a discarded batch: {type(error).__name__} at a value of an unforeseen form"
            self.report.left.append(Left(where, reason, "this is a defect, report it; the object stays in place"))
        except TrimmedError as error:
            self.report.left.append(Left(where, error.message, None))
        except TerminalError as error:
            self.report.left.append(Left(where, error.message, error.hint))
        else:
            self.report.batches += 1
            return True
        return False

    def _settle_partial(self, where: str, content: bytes) -> bool:
        """Apply the readable records of a damaged batch, and report how to restore the others."""
        batch = salvage(content)
        mapping = self.mappings.get(batch.table)
        if mapping is None:
            self.report.of_other_tables += 1
            return False
        self._replicate(batch.records)
        self.report.batches += 1
        if batch.stated != len(batch.records):
            self.report.partial.append(
                Left(
                    where,
                    f"{len(batch.records)} of {batch.stated or 'an unknown number of'} records are applied",
                    f"the others are gone from it: `dynaurora catch-up {mapping.name} --from TIME` over the time of the"
                    f" batch, or `dynaurora reconcile {mapping.name} --repair`, brings their items up to date",
                )
            )
        return True

    def _apply(self, batch: FailedBatch) -> None:
        records: Sequence[StreamRecord]
        if batch.records is not None:
            records = batch.records
        else:
            try:
                records = read_range(self.services.streams, batch)
            except TrimmedError as error:
                raise TerminalError(error.message, hint=self._window(batch)) from None
            self.report.read_again += 1
        self._replicate(records)

    def _replicate(self, records: Sequence[StreamRecord]) -> None:
        deadline = time.monotonic() + _BATCH_SECONDS
        for done in self.replicator.replicate({"Records": list(records)}, deadline=deadline):
            if done.failure is not None:
                raise done.failure
            if done.first_unprocessed is not None:
                raise TransientError(
                    f"redriving: a batch took longer than {_BATCH_SECONDS:.0f} s",
                    hint="the database is slow or away; run it again: applying a batch twice changes nothing",
                )
            self.report.records += done.records
            self.report.applied += done.applied
            self.report.stale += done.stale
            self.report.deleted += done.deleted
            self.report.rejected += done.rejected
            self.report.ignored += done.ignored

    def _window(self, batch: FailedBatch) -> str:
        """Return the command that catches up the range, in place of records that are gone."""
        mapping = self.mappings[batch.table]
        if batch.first_arrived is None:
            return f"catch up over the outage: `dynaurora catch-up {mapping.name} --from TIME`; then delete the message"
        start = batch.first_arrived.astimezone(UTC) - mapping.margin
        last = (batch.last_arrived or batch.first_arrived).astimezone(UTC)
        end = max(last + 3 * mapping.margin, start + SHORTEST)
        return (
            f"catch up over them: `dynaurora catch-up {mapping.name} --from {_text(start)} --to {_text(end)}`; then"
            " delete it"
        )


def _text(moment: datetime) -> str:
    return f"{moment + timedelta(seconds=moment.microsecond > 0):%Y-%m-%dT%H:%M:%SZ}"
