"""Mutations of what writes, shows and purges histories, which the generated versions must detect.

Invariant: a mutation alters one decision, and everything is restored when its context ends. Mutations that cannot alter
any outcome are in EQUIVALENT with the reason, and are not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from unittest.mock import patch

from psycopg import sql

from pipeline.aurora.rows import apply, history, history_fill, history_purge, staging
from pipeline.aurora.schema import history_tables
from pipeline.aurora.sessions.connection import trusted
from pipeline.core.model.change import coalesce
from pipeline.core.model.mapping import Target

Patches = Callable[[], list[Any]]


@dataclass(frozen=True, slots=True)
class Mutation:
    """`patches` alters the product's modules."""

    name: str
    patches: Patches

    @contextmanager
    def applied(self) -> Generator[None]:
        with ExitStack() as stack:
            for each in self.patches():
                stack.enter_context(each)
            yield


def _text(module: Any, name: str, old: str, new: str) -> Patches:  # noqa: ANN401 - a module
    """A composed statement of the product, with part of its text replaced. That part must be there."""
    original = getattr(module, name)

    def composed(*arguments: Any, **options: Any) -> Any:  # noqa: ANN401 - the original's own
        made = original(*arguments, **options)
        whole = isinstance(made, sql.Composable)
        statements: list[Any] = [made] if whole else list(made)
        assert not statements or any(old in each.as_string() for each in statements), f"nothing to mutate: {old}"
        replaced = [_replaced(each, old, new) for each in statements]
        return replaced[0] if whole else replaced

    return lambda: [patch.object(module, name, composed)]


def _replaced(made: sql.Composable, old: str, new: str) -> sql.Composed:
    text = made.as_string()
    return sql.Composed([sql.SQL(trusted(text.replace(old, new)))])


def _view(old: str, new: str) -> Patches:
    return _text(history_tables, "create_view", old, new)


def _recording(old: str, new: str) -> Patches:
    """A mutation of the statement that records, wherever it is used."""
    altered = _text(history, "record", old, new)

    def patches() -> list[Any]:
        (one,) = altered()
        return [one, patch.object(history_fill, "record", one.new)]

    return patches


def _candidates(choose: Callable[[list[Any]], list[Any]]) -> Patches:
    def candidates(_: Any, changes: Any) -> list[Any]:  # noqa: ANN401 - ApplyStatement and its changes
        return choose(list(changes))

    return lambda: [patch.object(apply.ApplyStatement, "candidates", candidates)]


def _no_versions_of_merges() -> list[Any]:
    def nothing(*_: object) -> sql.SQL:
        return sql.SQL("SELECT %s::timestamptz")

    return [patch.object(staging.Staging, "_versions", nothing)]


def _only_accepted_merged() -> list[Any]:
    """A merge records only the rows that the storage table has taken."""
    original = history.record

    def record(target: Target, rows: Any, children: Any, **options: Any) -> Any:  # noqa: ANN401 - record's own
        if options.get("condition") is not None and "SELECT DISTINCT ON" in rows.as_string():
            taken = sql.SQL(
                'EXISTS (SELECT FROM replica.{} AS s WHERE s."Id" = c."Id" AND s._as_of = c._as_of)'
            ).format(sql.Identifier(target.storage_name))
            options["condition"] = sql.SQL("{} AND {}").format(options["condition"], taken)
        return original(target, rows, children, **options)

    return [patch.object(history, "record", record)]


def _no_versions_of_builds() -> list[Any]:
    def nothing(*_: object, **__: object) -> None:
        pass

    return [patch.object(history_fill, "record_build", nothing)]


def _compacting(old: str, new: str) -> Patches:
    """A mutation of the statement that compacts; it is composed inside a function, so every statement is looked at."""
    original = sql.SQL

    class Altered(original):
        def __init__(self, obj: Any) -> None:  # noqa: ANN401 - SQL's own
            super().__init__(obj.replace(old, new) if "outlived" in obj else obj)

    return lambda: [patch.object(history_purge.sql, "SQL", Altered)]


def _later(days: int) -> Patches:
    """What is kept begins later than the mapping says."""
    original = history_purge.bound

    def bound(recorded: Any, now: datetime) -> datetime:  # noqa: ANN401 - a record
        return original(recorded, now) + timedelta(days=days)

    return lambda: [patch.object(history_purge, "bound", bound)]


def _children_of_storage() -> list[Any]:
    """A build's versions have the stored children."""

    def stored(target: Target, alias: str, _: Any = None) -> list[sql.Composed]:  # noqa: ANN401 - stored's own
        return history.stored(target, alias)

    return [patch.object(history_fill, "stored", stored)]


_ENDS = 'lead("valid_from_") OVER (PARTITION BY "Id"'
_PLACED = (
    'CASE WHEN "_version" = 0 THEN "_as_of" ELSE max("_as_of") FILTER (WHERE "_version" <> 0) OVER'
    ' (PARTITION BY "Id" ORDER BY "_version" ROWS UNBOUNDED PRECEDING) END'
)
_ORDER = '"_version" = 0, "_version"'
_RECORDED = ' c."_as_of", c."_deleted" FROM'
_OUTLIVE = "place NOT IN (1, first, first + 1)"
_BACK = "placed DESC, {version} = 0 DESC, {version} DESC)"
_BASE = "SELECT {names}, false FROM {base} WHERE"

MUTATIONS: tuple[Mutation, ...] = (
    Mutation("stream: only the newest of a batch", _candidates(coalesce)),
    Mutation(
        "stream: the newest, and the first of a batch", _candidates(lambda all_: [*all_[:1], *coalesce(all_[1:])])
    ),
    Mutation("record: a delete is a live version", _recording('c."_deleted" FROM', "false FROM")),
    Mutation("record: a streamed version is a snapshot", _recording('COALESCE(c."_version", 0)', "0")),
    Mutation("record: a snapshot has version 1", _recording('COALESCE(c."_version", 0)', 'COALESCE(c."_version", 1)')),
    Mutation("record: a second late", _recording(_RECORDED, ' c."_as_of" + interval \'1 s\', c."_deleted" FROM')),
    Mutation("record: by the minute", _recording(_RECORDED, ' date_trunc(\'minute\', c."_as_of"), c."_deleted" FROM')),
    Mutation("children: left out", _text(history, "carried", "CASE WHEN", "CASE WHEN false AND")),
    Mutation("children: in another order", _text(history, "carried", '"r"."line")', '"r"."line" DESC)')),
    Mutation("children: a build has those of the storage table", _children_of_storage),
    Mutation("merge: no version", _no_versions_of_merges),
    Mutation("merge: only rows that were taken", _only_accepted_merged),
    Mutation("build aside: no version", _no_versions_of_builds),
    Mutation("key: without the version", _text(history_tables, "create", '"_as_of", "_version")', '"_as_of")')),
    Mutation("late: nothing ends it", _text(history, "close_late", "WHERE c.", "WHERE false AND c.")),
    Mutation(
        "late: ends after the span", _text(history, "close_late", "- interval '1 microsecond'", "+ interval '1 h'")
    ),
    Mutation("late: a delete ends all", _text(history, "close_late", 'COALESCE(k."_deleted", true) FROM', "true FROM")),
    Mutation("late: newer stored rows end it too", _text(history, "close_late", 'k."_as_of" IS NULL OR', "true OR")),
    Mutation("view: at one time, a snapshot comes first", _view(_ORDER, '"_version" <> 0, "_version"')),
    Mutation("view: sequence numbers do not matter", _view(_ORDER, '"_version" = 0')),
    Mutation("view: times alone", _view(_PLACED, '"_as_of"')),
    Mutation("view: snapshots move later versions", _view(' FILTER (WHERE "_version" <> 0)', "")),
    Mutation("view: equal versions stay apart", _view('WHERE "changed_"', "WHERE true")),
    Mutation("view: deletes are equal to what was before", _view('ROW("_deleted", ', "ROW(")),
    Mutation("view: valid until the version after the next", _view('lead("valid_from_")', 'lead("valid_from_", 2)')),
    Mutation("view: one row's versions end another's", _view(_ENDS, _ENDS.replace('"Id"', '"Id" / 2'))),
    Mutation("view: the base is not shown", _view('UNION ALL SELECT "Id"', 'EXCEPT ALL SELECT "Id"')),
    Mutation("view: also what is not kept", _view("WHERE history_name =", "WHERE '' =")),
    Mutation("view: a day less than is kept", _view("SELECT kept_from", "SELECT kept_from + interval '1 day'")),
    Mutation("purge: the base takes nothing", _compacting(_OUTLIVE, f"(c.fresh OR {_OUTLIVE})")),
    Mutation("purge: only the last version outlives", _compacting("(1, first, first + 1)", "(1)")),
    Mutation("purge: not the first of the last run", _compacting("(1, first, first + 1)", "(1, first + 1)")),
    Mutation("purge: not the version before the run", _compacting("(1, first, first + 1)", "(1, first)")),
    Mutation("purge: the oldest outlives", _compacting(_BACK, "placed, {version} = 0, {version})")),
    Mutation(
        "purge: at one time, a snapshot is older", _compacting(_BACK, "placed DESC, {version} = 0, {version} DESC)")
    ),
    Mutation("purge: times that run back do not matter", _compacting("AND NOT runs_back", "")),
    Mutation("purge: nor those of later partitions", _compacting("u.{version} < c.highest", "false")),
    Mutation("purge: what the base had stays", _compacting(_BASE, f"{_BASE} false AND")),
    Mutation("purge: a day late", _later(1)),
)

EQUIVALENT = {
    "record: a version that is there takes the new values": "a position has one state, so they are the same:"
    " tests of the decoder say that a record always gives the same row",
}
