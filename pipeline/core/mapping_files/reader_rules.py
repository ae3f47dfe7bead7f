"""The rules for `readers`: the database roles that may read a view.

Invariant: each name is one that a role can have. Whether there is such a role, only the database knows: `plan` says.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.model.mapping import Target

READERS_EXAMPLE = "readers: [reporting]"
# PostgreSQL reads these as keywords, even in quotes (gram.y, RoleSpec).
_NO_ROLES = {"public": "everyone", "none": "nobody"}


def read_readers(field: Field) -> tuple[str, ...]:
    """Read a list of roles; an empty one lets nobody read. Notes problems."""
    found: list[str] = []
    for member in field.elements("[reporting]") or []:
        name = member.text()
        if name is None:
            continue
        if problem := _problem(name, found):
            member.problem(f'"{name}" {problem}')
        found.append(name)
    return tuple(found)


def _problem(name: str, before: list[str]) -> str:
    if name in before:
        return "is named twice; remove one"
    if name in _NO_ROLES:
        return f"is not a role: PostgreSQL takes it for {_NO_ROLES[name]}; name the role that may read"
    if not name or "\0" in name or len(name.encode()) > 63:
        return "cannot be a role's name, which has 1 to 63 bytes; name the role as \\du shows it"
    return ""


def with_readers(targets: Iterable[Target], of_file: tuple[str, ...]) -> tuple[Target, ...]:
    """Give each target its own readers or the file's, and each child its own or its parent's."""
    found: list[Target] = []
    for target in targets:
        readers = of_file if target.readers is None else target.readers
        of_parent = {target.view_name: readers}
        children: list[Target] = []
        for child in target.children:  # each after its parent
            own = of_parent[child.parent or ""] if child.readers is None else child.readers
            of_parent[child.view_name] = own
            children.append(replace(child, readers=own))
        found.append(replace(target, readers=readers, children=tuple(children)))
    return tuple(found)
