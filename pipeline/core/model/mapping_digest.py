"""A mapping's digest: it identifies everything that decides which row an item becomes.

Invariant: mappings with the same digest make the same rows from the same items, so files that were loaded under one
count as loaded under the other. The privacy key is part of it. Descriptions, indexes, readers, histories, schedules and
so on do not matter. A new field of Column or Target changes no stored digest, because a field with its default value is
left out. Digests that older versions stored are still recognised.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.model.mapping import Target

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pipeline.core.model.mapping import TableMapping

# Increase it if a field is renamed, or its default gets another meaning; then keep recognising this version too.
_VERSION = 2
# Fields that do not affect rows.
_WITHOUT_EFFECT = frozenset({"description", "indexes", "readers", "history"})
# Version 1 hashed the `repr` of these classes, with the fields that they had then.
_FIRST_FIELDS = {
    "Target": "schema name primary_key columns unmapped unmapped_on_error match parent explode children",
    "Column": "name attribute path type default on_error epoch json description capture",
    "SqlType": "name params",
    "Pattern": "tag texts captures",
}


def digests(mapping: TableMapping) -> list[str]:
    """Return the digest to store, followed by those that older versions stored for the same mapping."""
    targets = sorted(json.dumps(_form(target), sort_keys=True) for target in mapping.targets)
    key = [mapping.privacy_key.fingerprint] if mapping.hashes and mapping.privacy_key else []
    found = [f"{_VERSION}:{_hash(json.dumps(list(mapping.key.items())), *targets, *key)}"]
    try:
        return [*found, _hash(repr(mapping.key), *sorted(map(_first_form, mapping.targets)))]
    except _NewerError:
        return found


def _hash(*lines: str) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _form(value: object) -> object:
    """Return the form of a value that is hashed; for an object, the fields that differ from their defaults, by name."""
    if is_dataclass(value):
        return {each.name: _form(found) for each, found in _set_fields(value) if each.name not in _WITHOUT_EFFECT}
    if isinstance(value, tuple):
        return [_form(element) for element in cast("tuple[object, ...]", value)]
    return value


def _set_fields(value: Any) -> Iterator[tuple[Field[Any], object]]:  # noqa: ANN401  any dataclass
    """Yield the fields that differ from their defaults."""
    for each in fields(value):
        default = each.default_factory() if each.default_factory is not MISSING else each.default
        if each.compare and getattr(value, each.name) != default:
            yield each, getattr(value, each.name)


class _NewerError(Exception):
    """The mapping uses something that version 1 did not know."""


def _first_form(target: Target) -> str:
    columns = tuple(replace(column, description=None) for column in target.columns)
    return _first_repr(replace(target, columns=columns))


def _first_repr(value: object) -> str:
    """Return what `repr` returned in version 1. Raises _NewerError."""
    if isinstance(value, tuple):
        elements = [_first_repr(element) for element in cast("tuple[object, ...]", value)]
        return f"({', '.join(elements)}{',' if len(elements) == 1 else ''})"
    if not is_dataclass(value):
        return repr(value)
    kind = next(base.__name__ for base in type(value).__mro__ if base.__name__ in _FIRST_FIELDS)
    known = _FIRST_FIELDS[kind].split()
    if any(each.name not in known and each.name not in _WITHOUT_EFFECT for each, _ in _set_fields(value)):
        raise _NewerError
    return f"{kind}({', '.join(f'{name}={_first_repr(getattr(value, name))}' for name in known)})"
