"""Situations that random choice makes too rarely: each leads to the case that one guard of `pipeline.core.past` is for.

Invariant: they only make things happen, as any operation of a history does. The oracle decides what must hold then.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from tests.stress.operations.source import SECOND

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.stress.operations.histories import History
    from tests.stress.operations.source import Shard

LAG = 60
"""Seconds after which a working function without a batching window has brought the records it was given."""


def situation(history: History) -> None:
    """Lead to one of them, if the table has a stream and a function on it."""
    world = history.world
    replicator = world.replicator
    if world.table.name != world.database.source or not world.table.stream_on or replicator is None:
        return
    chosen = history.random.choice(SITUATIONS)
    history.say(f"{history.at()} situation: {chosen.__name__}")
    chosen(history)


def lost_behind_a_split(history: History) -> None:
    """A record is discarded, its shard is split, and a tick sees a successor at work before it reads the shard."""
    _at_work(history)
    history.tick()
    shard = _shard_of(history, key := _key(history))
    _give_up(history, key)
    history.product.throttled = {shard.name}
    _split(history, shard)
    history.world.write(history.random.choice([other for other in shard.keys if other != key] or [key]))
    history.pause(LAG + _window(history))
    history.tick()
    history.product.throttled = set()
    history.tick()


def never_read_successor(history: History) -> None:
    """A shard is split, and one of its successors is throttled from its first tick on; its records are discarded."""
    _at_work(history)
    history.tick()
    _split(history, _shard_of(history, key := _key(history)))
    history.product.throttled = {_shard_of(history, key).name}
    _give_up(history, key)
    history.pause(LAG)
    history.tick()
    history.product.throttled = set()


def passed_by_while_on_its_way(history: History) -> None:
    """The probe skips a stretch whose newest changes the replicator is about to bring."""
    product, world, key = history.product, history.world, _key(history)
    _at_work(history)
    history.tick()
    for replicator in world.replicators:
        replicator.lags, replicator.lag = (120,), {}
    product.most_records, product.passes_by = 1, True
    for pause in (400, 20):
        for _ in range(2):
            world.write(key)
        history.pause(pause)
    history.tick()
    product.most_records, product.passes_by = 1_000, False
    history.pause(200)
    world.write(key)
    for replicator in world.replicators:
        replicator.lags, replicator.lag = (0,), {}
    history.pause(30)
    history.tick()


def more_than_is_read_on(history: History) -> None:
    """The database is restored, more waits than is read, and the replicator has applied one more before a scout."""
    world, product = history.world, history.product
    _at_work(history)
    history.tick()
    world.backup()
    before = world.backups[-1][1]
    product.most_waiting = history.random.choice([1, 2])
    for key in list(world.keys)[: product.most_waiting]:
        world.write(key)
    history.pause(LAG + _window(history))
    world.restore(before)
    history.tick()
    world.write(history.random.choice(world.keys))
    history.pause(LAG + _window(history))
    for _ in range(history.random.randint(1, 3)):
        history.tick()
        history.pause(30)
    if history.random.random() < 0.5:  # and continues
        world.write(history.random.choice(world.keys))
        history.pause(LAG + _window(history))
        history.tick()
    elif history.product.reads_all or history.product.scouted:
        history.check_settles()
        world.write(key := _key(history))  # no scout looks into a shard that was closed
        _split(history, _shard_of(history, key))
        for _ in range(3):
            history.tick()
            history.pause(30)


def remade_and_away(history: History) -> None:
    """The stream is recreated while everything is down, and its first changes are trimmed before anyone is back."""
    world = history.world
    for replicator in world.replicators:
        replicator.dead = True
    world.disable_stream()
    history.pause(history.random.choice([5, 900]))
    world.enable_stream()
    for replicator in world.replicators:
        replicator.dead = True
    history.pause(1_200)
    history.write()
    history.pause(history.random.choice([90_000, 180_000]))
    history.write()
    history.tick()


def remade_while_on_its_way(history: History) -> None:
    """The stream is recreated while the function of the old one has not yet applied a change."""
    world, replicator = history.world, history.world.replicator
    assert replicator is not None
    _at_work(history)
    history.tick()
    replicator.lags, replicator.lag = (200,), {}
    world.write(_key(history))
    history.pause(10)
    world.disable_stream()
    world.enable_stream()
    for _ in range(3):
        history.pause(30)
        history.tick()
    replicator.lags, replicator.lag = (0,), {}


def rolled_unseen(history: History) -> None:
    """A tick finds a shard closed and its successors not listed; the next comes when they have lost their first."""
    world, key = history.world, _key(history)
    _at_work(history)
    history.tick()
    for replicator in world.replicators:
        replicator.dead = True
    history.pause(history.random.choice([600, 3_600]))
    _split(history, _shard_of(history, key))
    stream = world.table.stream
    assert stream is not None
    for made in stream.open_shards():
        made.listed = max(made.listed, world.now + 8 * SECOND)
    history.tick()
    world.write(key)
    history.pause(86_400 + world.trim_slack.total_seconds() + 300)
    history.tick()


def standing_still_unread(history: History) -> None:
    """A change waits in a shard that is throttled: reading nothing there does not show that nothing moves."""
    world, key = history.world, _key(history)
    for replicator in world.replicators:
        replicator.dead = True
    world.write(key)
    history.pause(10)
    history.tick()
    history.product.throttled = {_shard_of(history, key).name}
    for _ in range(3):
        history.pause(45 + _window(history))
        history.tick()
    history.product.throttled = set()


def purged_unseen(history: History) -> None:
    """A delete is applied, loaded over and purged before a tick reads its record."""
    world, key = history.world, _key(history)
    _at_work(history)
    history.tick()
    world.write(key)
    world.write(key, remove=True)
    history.pause(400 + _window(history))
    history.commands.run("load orders")
    world.purge(timedelta(0))
    history.tick()


def lost_again_before_the_remedy(history: History) -> None:
    """A person notes a command; until it is run, the same key loses another change, just behind an applied one."""
    key, replicator = _key(history), history.world.replicator
    assert replicator is not None
    _at_work(history)
    history.tick()
    replicator.lags, replicator.lag = (0,), {}
    _give_up(history, key)
    other = history.random.choice(history.world.keys)
    history.world.write(other)
    history.pause(10)
    history.tick()
    noted = [text for _, text in history.product.remedies()]
    history.pause(history.random.choice([5, 5, 5, 400]))
    if history.random.random() < 0.8:
        history.world.write(key)
        history.pause(10)
    _give_up(history, key)
    history.world.write(other)
    history.pause(10)
    for text in noted:
        history.follow_text(text)
    history.tick()


def repointed_and_lost(history: History) -> None:
    """Just after a switch to another table, changes are discarded, and only those are caught up."""
    _at_work(history)
    history.repoint()
    history.follow("repoint orders")
    history.pause(10)
    history.tick()
    _give_up(history, _key(history))
    history.world.write(_key(history))
    history.pause(LAG + _window(history))
    history.tick()
    for kind, text in history.product.remedies():
        if kind == "passed":
            history.follow_text(text)
    history.tick()


def off_and_restored(history: History) -> None:
    """The stream is turned off after changes that a restored database lacks were trimmed from it."""
    world = history.world
    _at_work(history)
    history.tick()
    world.backup()
    before = world.backups[-1][1]
    history.write()
    history.pause(90_000 + world.trim_slack.total_seconds())
    for _ in range(3):  # old shards are rolled
        history.pause(5)
    for key in world.keys:
        world.write(key)
    history.pause(LAG + _window(history))
    world.disable_stream()
    history.pause(10)
    world.restore(before)
    history.tick()


def loaded_within_the_margin(history: History) -> None:
    """A load contains what a dead function has not brought, and a reconciliation proves it; then the function works."""
    world, key = history.world, _key(history)
    _at_work(history)
    history.tick()
    for replicator in world.replicators:
        replicator.dead = True
    world.write(key)
    world.write(key, remove=True)
    world.write(key)
    history.commands.run("load orders")
    history.pause(400 + _window(history))
    for _ in range(4):
        history.tick()
        history.pause(30)
    history.commands.run("reconcile orders --repair")
    history.tick()
    history.fix()
    history.pause(LAG + _window(history))
    history.tick()


def came_and_went(history: History) -> None:
    """An item's insert is discarded and kept, its delete is discarded and lost; a redrive follows the catch-up."""
    world, key, replicator = history.world, _key(history), history.world.replicator
    assert replicator is not None
    world.write(key, remove=True)
    _at_work(history)
    history.tick()
    kept, replicator.keeps_failures = replicator.keeps_failures, 1.0
    _give_up(history, key)
    replicator.keeps_failures, replicator.poisoned = 0.0, 1
    world.write(key, remove=True)
    history.pause(LAG + _window(history))
    world.write(history.random.choice([other for other in world.keys if other != key]))
    history.pause(LAG + _window(history))
    replicator.keeps_failures = kept
    history.tick()
    remedies = history.product.remedies()
    for kind, text in sorted(remedies, key=lambda found: found[0] == "on_failure"):
        if kind in {"passed", "on_failure"}:
            history.follow_text(text)
    history.tick()


def back_before_the_function(history: History) -> None:
    """No tick runs for minutes. The next two run before the function, which also was away, tries its batch again."""
    world, replicator = history.world, history.world.replicator
    assert replicator is not None
    _at_work(history)
    history.tick()
    away = 600 + _window(history)
    replicator.lags, replicator.lag = (10 + away + 50,), {}
    world.write(_key(history))
    history.pause(10)
    for _ in range(history.random.choice([1, 3])):  # several at one moment say no more than one
        history.tick()
    history.pause(away)
    for _ in range(2):
        history.tick()
        history.pause(30)
    replicator.lags, replicator.lag = (0,), {}
    history.tick()


def lost_before_the_load(history: History) -> None:
    """A change is applied, and the next one of its item is lost, both so soon before a load that the first stays."""
    key = _key(history)
    history.world.write(key)
    history.pause(LAG + _window(history))
    _give_up(history, key)


def first_tick_late(history: History) -> None:
    """No tick looks at the stream for days after the load, and the replicator is dead."""
    for replicator in history.world.replicators:
        replicator.dead = True
    history.write()
    history.pause(history.random.choice([90_000, 180_000]))
    history.tick()


SITUATIONS: tuple[Callable[[History], None], ...] = (
    lost_behind_a_split,
    never_read_successor,
    passed_by_while_on_its_way,
    more_than_is_read_on,
    remade_and_away,
    remade_while_on_its_way,
    rolled_unseen,
    standing_still_unread,
    purged_unseen,
    lost_again_before_the_remedy,
    repointed_and_lost,
    off_and_restored,
    loaded_within_the_margin,
    came_and_went,
    back_before_the_function,
)


def _key(history: History) -> int:
    return history.random.choice(history.world.keys)


def _window(history: History) -> int:
    return history.world.settings["window_seconds"]


def _shard_of(history: History, key: int) -> Shard:
    stream = history.world.table.stream
    assert stream is not None
    return next(shard for shard in stream.open_shards() if key in shard.keys)


def _split(history: History, shard: Shard) -> None:
    stream = history.world.table.stream
    assert stream is not None
    stream.roll(shard, history.world.now, split=True)


def _at_work(history: History) -> None:
    """Let the functions finish what they have, and the probe read everything."""
    history.fix()
    history.pause(700 + _window(history))


def _give_up(history: History, key: int) -> None:
    """Write an item whose record the replicator discards."""
    replicator = history.world.replicator
    assert replicator is not None
    history.world.write(key)
    replicator.poisoned = 1
    history.pause(LAG + _window(history))
