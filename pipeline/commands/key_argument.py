"""The `--key` argument: one item's key attributes, as JSON or as NAME=VALUE."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, cast

from pipeline.core.errors import ConfigurationError
from pipeline.core.model.attributes import UnrepresentableError, canonical_number

if TYPE_CHECKING:
    from pipeline.core.model.attributes import Item
    from pipeline.core.model.mapping import TableMapping


def parse_key(mapping: TableMapping, texts: Sequence[str]) -> Item:
    """Return the key attributes that `texts` give, in DynamoDB's form.

    Either one JSON text, `{"Id": {"N": "7"}}`, or one `Id=7` for each key attribute (type B as base64). Raises
    ConfigurationError if they are not the table's key.
    """
    expected = ", ".join(f"{name} ({tag})" for name, tag in mapping.key.items())
    hint = f"the key of {mapping.table} is {expected}; give it as {_example(mapping)}"
    given: dict[str, object] = {}
    for text in texts:
        if text.lstrip().startswith("{"):
            given |= _parse_json(text, hint)
            continue
        name, equals, value = text.partition("=")
        if not equals or name not in mapping.key:
            raise ConfigurationError("--key does not name a key attribute", table=mapping.name, hint=hint)
        given[name] = {mapping.key[name]: value}
    if set(given) != set(mapping.key):
        raise ConfigurationError("--key must give exactly the table's key attributes", hint=hint)
    return {name: _checked(given[name], tag, hint) for name, tag in mapping.key.items()}


def _parse_json(text: str, hint: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        raise ConfigurationError("--key is not JSON, though it begins with a brace", hint=hint) from None
    return cast("dict[str, object]", value)


def _checked(attribute: object, tag: str, hint: str) -> dict[str, str]:
    if isinstance(attribute, Mapping):
        found = cast("Mapping[str, object]", attribute)
        value = found.get(tag)
        if len(found) == 1 and isinstance(value, str) and (tag != "N" or _is_number(value)):
            return {tag: value}
    raise ConfigurationError("--key has an attribute of a different type than the table's", hint=hint)


def _is_number(text: str) -> bool:

    try:
        canonical_number(text)
    except (UnrepresentableError, ValueError, ArithmeticError):
        return False
    return True


def _example(mapping: TableMapping) -> str:
    samples = {"N": "7", "S": "text", "B": "AAE="}
    whole = json.dumps({name: {tag: samples[tag]} for name, tag in mapping.key.items()})
    return f"'{whole}' or {' '.join(f'--key {name}={samples[tag]}' for name, tag in mapping.key.items())}"
