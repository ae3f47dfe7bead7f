"""`history` of a target: how long it keeps versions, and the names that it takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.core.model import history
from pipeline.core.model.mapping import Target
from pipeline.core.model.mapping_digest import digests
from pipeline.core.names import LONGEST_NAME_BYTES

TEXT = """
name: shop
source: {table: Shop, key: {PK: S}}
targets:
  Orders:
    primary_key: [PK]
    history: {keep: 400d}
    columns: {PK: {attribute: PK, type: text}, state: {attribute: state, type: text}}
  Lines:
    parent: Orders
    explode: lines
    element: {line: integer}
    columns: {sku: {attribute: sku, type: text}}
"""


def orders(text: str = TEXT) -> Target:
    return read_mapping(text, "shop.yaml").targets[0]


def problem(old: str, new: str) -> str:
    assert old in TEXT
    with pytest.raises(MappingError) as found:
        read_mapping(TEXT.replace(old, new), "shop.yaml")
    return str(found.value)


def test_a_history_says_how_long_versions_are_kept() -> None:
    target = orders()
    assert target.history is not None
    assert target.history.keep == timedelta(days=400)
    assert orders(TEXT.replace("    history: {keep: 400d}\n", "")).history is None
    assert [child.history for child in target.children] == [None]


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{keep: 400d}", "{keep: a year}", "7: targets.Orders.history.keep: must be how long versions are kept"),
        ("{keep: 400d}", "{keep: [400d]}", "7: targets.Orders.history.keep: must be how long versions are kept"),
        ("{keep: 400d}", "{keep: 3h}", "7: targets.Orders.history.keep: must be from 1d to 36500d; write 400d"),
        ("{keep: 400d}", "{}", "keep: 400d"),
        ("{keep: 400d}", "true", "7: targets.Orders.history: must be"),
        ("    explode", "    history: {keep: 9d}\n    explode", "11: targets.Lines.history: a child has no history of"),
        ("  Lines:", "  Orders_history:", "its history would be the view public.Orders_history, which is a target"),
        ("state: {", "history_source: {attribute: a, type: text}, source: {", '"history_source" is a column of its'),
        ("state: {", "Lines: {", '"Lines" would be two columns of its history'),
        ("  Lines:", "  _history_x:", "is a name of tables that Dynaurora creates and drops"),
    ],
)
def test_what_is_wrong_is_said_with_its_remedy(old: str, new: str, said: str) -> None:
    assert said in problem(old, new)


def test_a_history_changes_no_row_so_what_was_loaded_still_counts() -> None:
    without = TEXT.replace("    history: {keep: 400d}\n", "")
    assert digests(read_mapping(TEXT, "shop.yaml")) == digests(read_mapping(without, "shop.yaml"))


def test_the_views_columns_step_aside_for_the_targets() -> None:
    names = history.view_columns(orders(TEXT.replace("state: {", "source: {")))
    assert names == ("valid_from", "valid_to", "is_current", "deleted", "history_source", "gap")


def test_long_names_fit_and_differ() -> None:
    target = orders(TEXT.replace("Orders:", f"{'x' * 63}:").replace("parent: Orders", f"parent: {'x' * 63}"))
    start = datetime(2026, 11, 2, tzinfo=UTC)
    names = {*history.tables_of(target), history.rest_name(target), history.partition_name(target, start)}
    names |= {*history.views_of(target)}
    assert len(names) == 5  # the view and the table of versions may have one name: their schemas differ
    assert all(len(name.encode()) <= LONGEST_NAME_BYTES for name in names)


@pytest.mark.parametrize(("keep", "days"), [(1, 1), (29, 1), (30, 7), (179, 7), (180, 28), (400, 28), (3_650, 364)])
def test_partitions_begin_where_those_of_a_shorter_span_begin(keep: int, days: int) -> None:
    kept = history.History(timedelta(days=keep))
    assert kept.partition_days == days
    time = datetime(2026, 11, 29, 13, 5, tzinfo=UTC)
    start = history.partition_begin(time, days)
    assert start <= time < start + timedelta(days=days)
    assert all(history.partition_begin(start, shorter) == start for shorter in (1, 7) if shorter <= days)
