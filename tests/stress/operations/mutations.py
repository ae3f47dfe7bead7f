"""Mutations of what a tick may conclude: each alters one guard, and generated histories must detect it.

Invariant: a mutation replaces one piece of the source text of a module of `pipeline`, once; it fails loudly if the
piece no longer exists. The modules are restored when its context ends.
"""

from __future__ import annotations

import importlib
import inspect
import textwrap
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType


@dataclass(frozen=True, slots=True)
class Mutation:
    """Replace `piece` with `altered` in `function` of `module`."""

    name: str
    module: str
    function: str
    piece: str
    altered: str

    @contextmanager
    def applied(self) -> Generator[None]:
        """Alter the function's code in place, so that it applies to everyone who imported the function."""
        owner: object = importlib.import_module(f"pipeline.{self.module}")
        for part in self.function.split("."):
            owner = getattr(owner, part)
        function = owner.fget if isinstance(owner, property) else inspect.unwrap(owner)  # type: ignore[arg-type]
        function = getattr(function, "__func__", function)
        assert isinstance(function, FunctionType)
        source = textwrap.dedent(inspect.getsource(function))
        if source.count(self.piece) != 1:
            raise AssertionError(f"{self.name}: {self.piece!r} is {source.count(self.piece)} times in {self.function}")
        scope = dict(function.__globals__)
        text = "from __future__ import annotations\n" + source.replace(self.piece, self.altered)
        exec(compile(text, "mutation", "exec"), scope)  # noqa: S102 - the product's own text
        mutant = scope[function.__name__]
        mutant = getattr(mutant, "__func__", mutant)
        mutant = mutant.fget if isinstance(mutant, property) else mutant
        assert isinstance(mutant, FunctionType)
        before = function.__code__
        function.__code__ = mutant.__code__
        try:
            yield
        finally:
            function.__code__ = before


def _conclude(name: str, function: str, piece: str, altered: str) -> Mutation:
    return Mutation(name, "core.past.conclude", function, piece, altered)


def _probing(name: str, function: str, piece: str, altered: str) -> Mutation:
    return Mutation(name, "core.past.probing", function, piece, altered)


def _losses(name: str, function: str, piece: str, altered: str) -> Mutation:
    return Mutation(name, "core.past.losses", function, piece, altered)


def _late(name: str, altered: str) -> Mutation:
    return Mutation(name, "core.ordering", "comes_too_late", "(shown or not deleted)", altered)


def _clock(name: str, function: str, piece: str, altered: str) -> Mutation:
    return Mutation(name, "dynamodb.clock", f"SourceClock.{function}", piece, altered)


MUTATIONS: tuple[Mutation, ...] = (
    # The two claims.
    _conclude("claim: open losses left out", "_caught_up", ", *(loss.since for loss in losses)]", "]"),
    _conclude("claim: what waits left out", "_caught_up", "*(change.since for change in waiting), ", ""),
    _conclude(
        "claim: never",
        "_caught_up",
        "return min([claimed, *(change.since for change in waiting), *(loss.since for loss in losses)])",
        "return None",
    ),
    _conclude("settled: what is on its way left out", "conclude", "min([settled, *on_way])", "settled"),
    _conclude("settled: held back by what is lost and stuck", "conclude", "if change.state is State.ON_ITS_WAY]", "]"),
    _conclude(
        "settled: through the tick, whatever was read",
        "conclude",
        "settled = _settled_read(kept.read_through, sight, shards, settles_from, now, rules)",
        "settled = sight.through",
    ),
    _conclude(
        "settled: a still shard holds it back", "_settled_read", "if shard.shard_id in still and", "if False and"
    ),
    _conclude(
        "settled: the stream that is off holds it back",
        "_settled_read",
        "(shard.finished and sight.stream_enabled)",
        "shard.finished",
    ),
    _conclude(
        "settled: at once on a new stream", "_settled_read", "settles_from is not None and read < settles_from", "False"
    ),
    _conclude("settled: never on a new stream", "_settled_read", "read < settles_from", "True"),
    # States.
    _conclude("state: passed never", "_state", "applied and change.version < applied.version", "False"),
    _conclude("state: passed by anything applied", "_state", "change.version < applied.version", "True"),
    _conclude("state: passed although lanes overtake", "_state", " - _overtaking(rules)", ""),
    _conclude("state: trimmed never", "_state", "change.as_of <= now - RETENTION", "False"),
    _conclude("state: stuck never", "_state", "State.STUCK if _is_still(shard, now, rules) else", ""),
    _conclude(
        "state: stuck at once",
        "_state",
        "State.STUCK if _is_still(shard, now, rules) else State.ON_ITS_WAY",
        "State.STUCK",
    ),
    _conclude(
        "still: after no time", "_is_still", "now - shard.moved_at >= STILL_AFTER + rules.batching_window", "True"
    ),
    _conclude("still: the batching window ignored", "_is_still", " + rules.batching_window", ""),
    _conclude("still: after no tick", "_is_still", "shard.still_ticks >= STILL_TICKS", "True"),
    _conclude("shards: a successor does not move its parent", "_shards", "moved[first] or ", ""),
    _conclude(
        "shards: a held shard that was closed still stands still",
        "_shards",
        " or (before[first].moved_at is None and seen[name].held)",
        "",
    ),
    _conclude(
        "shards: a successor's records prove nothing of its parent",
        "_shards",
        "applied[name] = _further(applied[name], applied[first])",
        "pass",
    ),
    _conclude("shards: what waited is not looked up", "_shards", "*memory.waiting, ", ""),
    # The stream.
    _conclude("changed: what waited of the old stream kept", "conclude", "waiting=(), ", ""),
    _conclude("changed: not noticed", "_stream_changed", "before is None or before == sight.stream_label", "True"),
    _losses(
        "changed: a recreated table is a remade stream",
        "stream_changed",
        "Kind.TABLE_RECREATED if other_table else Kind.STREAM_REMADE",
        "Kind.STREAM_REMADE",
    ),
    _conclude("gap: a trimmed place lost nothing", "_lost_place", "one is None or one.trimmed", "one is None"),
    _conclude("gap: a place without a number lost nothing", "_lost_place", "place.sequence_number is None", "False"),
    _conclude("unread: not kept", "_gaps", "for span in unread]", "for span in ()]"),
    _conclude("gap: not noticed", "_gaps", "since < kept_since and", "False and"),
    _conclude("gap: of places that were read lately", "_gaps", "since < kept_since and", ""),
    _conclude(
        "gap: ends a day early",
        "_gaps",
        "gaps.append(Loss(Kind.GAP, since, kept_since))",
        "gaps.append(Loss(Kind.GAP, since, max(since, kept_since - RETENTION)))",
    ),
    _conclude(
        "gap: a stream that is off has none",
        "_gaps",
        "if place.finished and not sight.stream_enabled",
        "if not sight.stream_enabled",
    ),
    _conclude(
        "gap: a shard that is gone lost nothing",
        "_lost_place",
        "if one is None or one.trimmed:",
        "if one is None:\n        return False\n    if one.trimmed:",
    ),
    _conclude(
        "still: what is read does not move a shard",
        "_moved",
        "read_on or bool(one.sightings or one.scouted or one.passed)",
        "False",
    ),
    _conclude(
        "read: a shard found closed counts as read through the tick",
        "_read_through",
        "return _latest(before.read_through, *(change.as_of for change in one.sightings))",
        "return one.progress.read_through",
    ),
    _conclude(
        "claim: made of a table that is not proven",
        "_caught_up",
        "any(loss.kind in NOT_BY_CATCH_UP for loss in losses)",
        "False",
    ),
    _losses("changed: begins with the stream", "stream_changed", "[begun, proven or begun, *waiting]", "[begun]"),
    # Losses.
    _conclude("losses: passed ones not told", "_losses", "for change in lost]", "for change in ()]"),
    _conclude("losses: stuck ones not told", "_losses", "for change in stuck]", "for change in ()]"),
    _conclude("losses: stuck ones told at once", "_losses", " and change.since <= now - rules.warn", ""),
    _conclude("losses: those kept by their keys never close", "_losses", " if not loss.keys_kept", ""),
    _conclude("losses: forgotten", "_losses", "*(loss for loss in memory.losses if not loss.keys_kept), ", ""),
    _conclude("losses: never closed", "_losses", "if not sight.proof.closes(loss, rules.margin)", "if True"),
    _losses(
        "closing: any catch-up will do",
        "Proof.covers",
        "return at >= 0 and self.covered[at][1] > until + margin",
        "return bool(self.covered)",
    ),
    _losses("closing: any clean reconciliation will do", "Proof.shows", "self.reconciled >= until", "True"),
    _losses(
        "closing: reconciliations close nothing",
        "Proof.shows",
        "(self.reconciled is not None and self.reconciled >= until) or ",
        "",
    ),
    _losses(
        "closing: reconciliations close no recreated table",
        "Proof.closes",
        "return self.reconciled is not None and self.reconciled >= loss.until",
        "return False",
    ),
    _losses("merging: the later beginning", "Loss.widened", "since=min(", "since=max("),
    _losses("merging: the earlier end", "Loss.widened", "until=max(", "until=min("),
    _losses(
        "catch-ups: the last one alone",
        "Proof.of",
        "covered[-1] = (covered[-1][0], max(covered[-1][1], until))",
        "covered[-1] = (since, until)",
    ),
    # What comes late.
    _late("late: all is taken", "False"),
    _late("late: all but new rows is taken", "not (shown or deleted)"),
    _late("late: rows that are shown are kept, new ones made", "shown"),
    # Clocks.
    _clock("clock: the host's is taken for the source's", "source_time", " - (self.ahead or timedelta(0))", ""),
    _clock("clock: the first measure stands", "_learn", "if narrow[0] <= narrow[1]:", "if True:"),
    # What has arrived.
    _probing(
        "arrived: nothing",
        "Stored.has",
        "return bool(change.key) and not accepts(change.position, self.positions.get(change.row), self.purged_through)",
        "return False",
    ),
    _probing(
        "arrived: any row will do",
        "Stored.has",
        "not accepts(change.position, self.positions.get(change.row), self.purged_through)",
        "change.row in self.positions",
    ),
    _probing("arrived: rejects wait for ever", "Stored.has", "change.version in self.rejected", "False"),
    _probing("arrived: proof ignored", "not_arrived", " or proof.shows(change.since, change.as_of, margin)", ""),
    _probing(
        "applied: whatever is stored",
        "Stored.applied",
        "min(Applied(at.version, at.as_of), Applied(change.version, change.as_of), key=lambda one: one.version)",
        "Applied(change.version, change.as_of)",
    ),
    _probing("waiting: since the newest change", "_merged", "since=min(one.since, other.since)", "since=newest.since"),
    _probing("waiting: the oldest change of a key is kept", "_merged", "newest = max(", "newest = min("),
    _probing(
        "read: ended shards hold nothing back",
        "frontier",
        "if not shard.finished or shard.shard_id not in parents",
        "if not shard.finished",
    ),
    _probing("lineage: parents alone", "lineages", "parent not in line:", "parent not in line and len(line) < 2:"),
    # Only a situation of `situations` leads to these.
    _conclude(
        "shards: what is applied is forgotten",
        "_shards",
        "applied = {name: shard.applied for name, shard in before.items()}",
        "applied = dict.fromkeys(before)",
    ),
    _conclude(
        "settled: every shard that ended counts as still",
        "_settled_read",
        "if _is_still(shards[name], now, rules)",
        "if True",
    ),
    _conclude(
        "settled: unread stretches left out",
        "_settled_read",
        "if shard.unread is not None and name not in still",
        "if False",
    ),
    _conclude("shards: what a scout sees proves nothing", "_shards", "(*one.sightings, *one.scouted)", "one.sightings"),
    _conclude("gap: successors lost nothing", "_gaps", "followed or ", ""),
    _losses("closing: catch-ups close a recreated table", "Proof.closes", "loss.kind in NOT_BY_CATCH_UP", "False"),
    _losses("closing: catch-ups need no margin", "Proof.covers", " + margin", ""),
    _conclude(
        "overlooked: while a place does not move on",
        "_overlooked",
        "any(one.held for one in sight.shards)",
        "False",
    ),
    _losses(
        "changed: ends with the label, however old",
        "stream_changed",
        "max(label_time(label), now - RETENTION)",
        "label_time(label)",
    ),
    _conclude("losses: too many keys close by themselves", "_losses", "keys_kept=kept", "keys_kept=True"),
    _probing(
        "read: shards that were never read hold nothing back",
        "earliest",
        "None if not known or None in known else ",
        "None if not any(known) else ",
    ),
    _probing("arrived: purges ignored", "Stored.has", "self.purged_through)", "None)"),
    _probing(
        "arrived: by proof of its beginning alone",
        "not_arrived",
        "proof.shows(change.since, change.as_of, margin)",
        "proof.shows(change.since, change.since, margin)",
    ),
    _conclude("unread: over at once", "_unread", "unread is None or now >= unread.until + GONE_AFTER", "True"),
    _conclude("unread: never over", "_unread", "return None if behind else unread", "return unread"),
    _conclude("gap: first ticks know none", "_gap_before_first", "if known < kept_since else []", "if False else []"),
    _conclude(
        "gap: a first tick's ends where it begins",
        "_gap_before_first",
        "Loss(Kind.GAP, known, kept_since)",
        "Loss(Kind.GAP, known, known)",
    ),
    _conclude("gap: a load stands at its time", "_gaps", "sight.loaded - rules.margin", "sight.loaded"),
    _conclude("still: ticks that did not reach the end count", "_shards", "ended[name] and since_tick", "since_tick"),
    _conclude("still: ticks at the same moment count", "_shards", " and since_tick >= _APART", ""),
    _conclude(
        "still: a pause of the probe counts", "_shards", " or (paused and before[name].still_ticks < STILL_TICKS)", ""
    ),
    _conclude(
        "overtaking: a factor that is not known counts as 1",
        "_overtaking",
        "rules.parallelization == 1",
        "rules.parallelization in {1, None}",
    ),
)

EQUIVALENT: dict[str, str] = {
    "settled: a closed shard that stands still counts as read through now": (
        "its successors are listed seconds later, long before it stands still"
    ),
    "changed: places of the old stream are kept": "shards are named once: the new stream lists none of them",
    "changed: a loss begins with what was proven, whatever waits": "what is proven never lies behind what waits",
    "state: trimmed an hour early": "a function that was dead for 23 hours is told of as one that was for 24",
}
"""Alterations that cannot change an outcome, and why."""
