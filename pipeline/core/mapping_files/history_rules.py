"""The rules for `history`: how long versions are kept, and which names their table and view take.

Invariant: the names of a history's table and view belong to no target, so nothing is in their way but what a person
created.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from pipeline.core.model.history import History, table_name, view_columns, view_name
from pipeline.core.spans import parse_span

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.mapping import Target

HISTORY_EXAMPLE = "history: {keep: 400d}"
NO_HISTORY_OF_A_CHILD = (
    "a child has no history of its own: give the parent a history, and each of its versions keeps the child's rows"
)
_HISTORY = {"keep": "keep: 400d"}
SHORTEST, LONGEST = timedelta(days=1), timedelta(days=36_500)


def read_history(field: Field) -> History | None:
    """Read a target's history. Notes problems; returns None if it cannot be used."""
    fields = field.known(_HISTORY, {})
    if fields is None or "keep" not in fields:
        return None
    keep = parse_span(fields["keep"].written) if fields["keep"].is_scalar else None
    if keep is None:
        fields["keep"].problem("must be how long versions are kept, such as 400d")
        return None
    if not SHORTEST <= keep <= LONGEST:
        fields["keep"].problem(f"must be from {SHORTEST.days}d to {LONGEST.days}d; write 400d to look back a year")
        return None
    return History(keep)


def check_histories(targets: Iterable[Target], fields: Mapping[str, Field]) -> None:
    """Note histories whose table, view or columns would have the name of another of this file."""
    every = [each for target in targets for each in (target, *target.children)]
    storage = {target.storage_name for target in every}
    views = {target.view_name for target in every}
    for target in every:
        field = fields.get(target.name) or fields.get(target.view_name)
        if target.history is None or field is None:
            continue
        view = f"{target.schema}.{view_name(target)}"
        if table_name(target) in storage or view in views:
            field.problem(f"its history would be the view {view}, which is a target of this file; rename one")
        names = [*(column.name for column in target.columns), *(child.name for child in target.children)]
        if twice := sorted({name for name in view_columns(target) if name in names}):
            field.problem(f'"{twice[0]}" is a column of its history; rename the column of the target')
        elif len(set(names)) < len(names):
            name = next(name for name in names if names.count(name) > 1)
            field.problem(f'"{name}" would be two columns of its history, for a column and for a child; rename one')
