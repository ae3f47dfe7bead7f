"""Read items again by key, and write what DynamoDB holds now to their rows, under the ordering rule.

Invariant: a row takes a state only with the position of the read that returned it, so nothing newer is undone.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from pipeline.aurora.bookkeeping.suspects import unmentioned_keys
from pipeline.aurora.errors import translating
from pipeline.aurora.rows.apply import ApplyStatement
from pipeline.aurora.rows.isolating import judging, store_isolating
from pipeline.core.decode.keys import key_attributes
from pipeline.core.decode.row_decoder import RowDecoder
from pipeline.core.errors import ConversionError
from pipeline.core.model.change import Change
from pipeline.core.ordering import snapshot_position
from pipeline.jobs.clocks import refuse_wrong_clock
from pipeline.jobs.protecting import read_again

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import timedelta

    from pipeline.aurora.sessions.connection import Connection
    from pipeline.core.errors import DataError
    from pipeline.core.exports.windows import Window
    from pipeline.core.model.mapping import TableMapping, Target
    from pipeline.jobs.services import Services

_KEYS_AT_ONCE = 500


@dataclass(slots=True)
class ReadAgain:
    """The result of reading again."""

    items: int = 0
    removed: int = 0
    """Rows whose item no longer exists."""
    unfit: int = 0
    """Items that their target cannot hold; their records are already rejects."""


def read_untold(services: Services, mapping: TableMapping, told: Window, margin: timedelta) -> ReadAgain:
    """Read every item again whose row the windows up to `told.end` should have replaced, and did not."""
    found = ReadAgain()
    with (
        services.connect("dynaurora catch-up look") as looking,
        services.connect("dynaurora catch-up settle") as settling,
    ):
        for target in mapping.targets:
            keys = unmentioned_keys(looking, target, mapping.name, told.start, told.end - margin)
            while chunk := list(islice(keys, _KEYS_AT_ONCE)):
                _settle(services, settling, mapping, target, chunk, margin, found)
    return found


def _settle(
    services: Services,
    connection: Connection,
    mapping: TableMapping,
    target: Target,
    keys: Sequence[tuple[str, ...]],
    margin: timedelta,
    found: ReadAgain,
) -> None:
    decoder, statement = (
        RowDecoder(target),
        ApplyStatement(target, mapping.name, mapping.table, protection=mapping.protection),
    )
    changes: list[Change] = []
    wanted = [key_attributes(mapping, target, key) for key in keys]
    for read in read_again(services, mapping, wanted):
        found.items += 1
        try:
            row = None if read.item is None else decoder.row(read.item)
            changes.append(Change(decoder.key(read.key), row, snapshot_position(read.read_at, margin)))
        except ConversionError:
            found.unfit += 1

    def apply(part: Sequence[Change]) -> int:
        with translating("applying items read again", table=mapping.name):
            _, deleted, *_ = statement.apply(connection, list(part))
        found.removed += deleted
        return len(part)

    def refuse(_change: Change, _error: DataError) -> None:
        found.unfit += 1

    refuse_wrong_clock(services, mapping, margin, "applying items read again", connection)
    with translating("applying items read again", table=mapping.name), connection.transaction():
        judge = judging(connection, statement, "applying items read again")
        store_isolating(connection, statement.candidates(changes), apply, refuse, judge)
