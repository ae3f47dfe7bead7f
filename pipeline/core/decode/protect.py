"""Replaces protected values in items, before anything else sees them.

Invariant: what a rule names is replaced wherever it is, in whatever form it comes. A value that is found where the
rule's path expects a map or a list is replaced whole, so that an unexpected form shows nothing either. A malformed
value becomes an empty attribute value, which every decoder refuses. Nothing else of an item changes, and the item that
was given never does.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from pipeline.core.decode.routing import Router
from pipeline.core.errors import ConfigurationError
from pipeline.core.model.attribute_form import MALFORMED, is_item
from pipeline.core.model.attributes import UnrepresentableError, canonical_number
from pipeline.core.model.protection import ANY, MASKED, Protect, entry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.model.attributes import AttributeValue, Item
    from pipeline.core.model.mapping import TableMapping
    from pipeline.core.model.protection import Entry, PrivacyKey, Rule

_SETS = {"SS": "S", "NS": "N", "BS": "B"}
_MALFORMED_VALUE: AttributeValue = {}
_NULL: AttributeValue = {"NULL": True}


class Protector:
    """Protects the items of one mapping. Build it once; its methods hold no state."""

    def __init__(self, mapping: TableMapping, already: frozenset[Entry] = frozenset()) -> None:
        """`already` is what is protected already in the items that it will be given.

        Raises ConfigurationError if the mapping hashes and its key is not known.
        """
        if mapping.hashes and mapping.privacy_key is None:
            raise ConfigurationError(
                "hashing attributes: the privacy key is not set",
                table=mapping.name,
                hint="set PRIVACY_KEY_SECRET_ID to a secret of at least 32 characters, or PRIVACY_KEY for local use",
            )
        self._key_names = frozenset(mapping.key)
        self._router = Router(mapping)
        self._rules = {
            target: [
                (rule, _replacer(rule, mapping.privacy_key))
                for rule in rules
                if entry(rule, mapping.privacy_key) not in already
            ]
            for target, rules in mapping.rules.items()
        }

    def __bool__(self) -> bool:
        """Whether it changes anything."""
        return any(self._rules.values())

    @property
    def of_attributes(self) -> dict[str, tuple[Protect, Callable[[Any], AttributeValue | None]]] | None:
        """What is done to whole attributes; None unless that is all, and the same for every item."""
        if not self._router.trivial or any(len(rule.path) > 1 for rule, _ in self._rules[""]):
            return None
        return {rule.path[0]: (rule.how, replace) for rule, replace in self._rules[""]}

    def item(self, item: Item) -> Item:
        """Return the item as it may be stored."""
        return self._protected(self._target(item), item)

    def image(self, keys: Item, image: Item) -> Item:
        """Return an item whose key is `keys` as it may be stored."""
        return self._protected(self._target(keys), image)

    def keys(self, keys: Item) -> Item:
        """Return the key attributes, which are never protected, and nothing else."""
        return {name: value for name, value in keys.items() if name in self._key_names}

    def _target(self, keys: Item) -> str:
        if self._router.trivial:
            return ""
        try:
            targets = self._router.route(keys)
        except MALFORMED:
            return ""
        return targets[0].view_name if targets else ""

    def _protected(self, target: str, item: Item) -> Item:
        found = item
        for rule, replace in self._rules[target]:
            path = rule.path
            root = path[0]
            if root not in found:
                continue
            if found is item:
                found = dict(item)
            try:
                value = _protect(found[root], path, 1, replace)
            except RecursionError:
                value = _MALFORMED_VALUE
            if value is None:
                del found[root]
            else:
                found[root] = value
        return found


def _protect(value: Any, path: tuple[str, ...], at: int, replace: Any) -> AttributeValue | None:  # noqa: ANN401
    """Return the value with what is at `path` replaced, from the part `at` on; None if nothing is left of it."""
    if not isinstance(value, dict) or len(cast("dict[str, Any]", value)) != 1:
        return replace(value)  # which refuses it
    found = cast("AttributeValue", value)
    ((tag, inner),) = found.items()
    if at < len(path):
        if tag == "NULL" and inner is True:
            return found
        if tag == "M" and isinstance(inner, dict):
            return {"M": _members(cast("Item", inner), path, at, replace)}
        if tag == "L" and isinstance(inner, list):
            # A name passes through a list: it may be in each of its elements.
            following = at + (path[at] == ANY)
            replaced = [_protect(element, path, following, replace) for element in cast("list[AttributeValue]", inner)]
            return {"L": [element for element in replaced if element is not None]}
        if tag in _SETS and isinstance(inner, list):
            return _set(_SETS[tag], cast("list[str]", inner), replace)
    return replace(found)


def _set(tag: str, elements: list[str], replace: Any) -> AttributeValue | None:  # noqa: ANN401
    """Replace each element of a set; equal ones, such as masked ones, are one."""
    replaced = [replace({tag: element}) for element in elements]
    if None in replaced:
        return None
    return {"SS": sorted({element["S"] for element in replaced})} if all(replaced) else _MALFORMED_VALUE


def _members(members: Item, path: tuple[str, ...], at: int, replace: Any) -> Item:  # noqa: ANN401
    part = path[at]
    found = dict(members)
    for name in list(members) if part == ANY else [part] if part in members else []:
        value = _protect(members[name], path, at + 1, replace)
        if value is None:
            del found[name]
        else:
            found[name] = value
    return found


def _masked(value: Any) -> AttributeValue:  # noqa: ANN401  whatever a record holds
    if value == _NULL:
        return value
    return {"S": MASKED} if is_item({"": value}) else _MALFORMED_VALUE


def _replacer(rule: Rule, key: PrivacyKey | None) -> Callable[[Any], AttributeValue | None]:
    if rule.how is Protect.DROP:
        return lambda _: None
    if rule.how is Protect.MASK:
        return _masked
    secret = key.key if key else b""

    def hashed(value: Any) -> AttributeValue:  # noqa: ANN401  whatever a record holds
        if value == _NULL:
            return value
        try:
            return {"S": hmac.digest(secret, canonical(value), "sha256").hex()}
        except (*MALFORMED, UnrepresentableError, binascii.Error):
            return _MALFORMED_VALUE

    return hashed


def canonical(value: Mapping[str, Any]) -> bytes:
    """Return the bytes of an attribute value that are hashed: those of the text that people know it by.

    S is its text, N in plain notation without needless zeros, B its bytes, BOOL `true` or `false`. So the number 42 and
    the text "42" are equal. A list, map or set is its JSON without spaces, names and sets sorted.
    """
    if len(value) != 1:
        raise ValueError
    ((tag, inner),) = value.items()
    if tag == "S" and isinstance(inner, str):
        return inner.encode("utf-8", "surrogatepass")
    if tag == "N":
        return canonical_number(inner).encode()
    if tag == "B":
        return base64.b64decode(inner, validate=True)
    return _json(value).encode("utf-8", "surrogatepass")


def _json(value: Mapping[str, Any]) -> str:
    if len(value) != 1:
        raise ValueError
    ((tag, inner),) = value.items()
    return _JSON[tag](inner)


def _text(text: str) -> str:
    if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]  whatever a record holds
        raise TypeError
    return json.dumps(text, ensure_ascii=False)


def _boolean(value: object) -> str:
    if not isinstance(value, bool):
        raise TypeError
    return "true" if value else "false"


def _map(members: Mapping[str, Any]) -> str:
    return f"{{{','.join(f'{_text(name)}:{_json(member)}' for name, member in sorted(members.items()))}}}"


_JSON: dict[str, Callable[[Any], str]] = {
    "S": _text,
    "N": canonical_number,
    "B": _text,
    "BOOL": _boolean,
    "NULL": lambda _: "null",
    "SS": lambda values: f"[{','.join(map(_text, sorted(values)))}]",
    "NS": lambda values: f"[{','.join(sorted(map(canonical_number, values), key=Decimal))}]",
    "BS": lambda values: f"[{','.join(map(_text, sorted(values)))}]",
    "L": lambda values: f"[{','.join(map(_json, values))}]",
    "M": _map,
}


def gone(mapping: TableMapping, target: str, already: frozenset[Entry]) -> bool:
    """Whether what was done to a target's items takes away values that the mapping needs now.

    A value that is masked or dropped today needs nothing of what was there.
    """
    rules = mapping.rules.get(target, mapping.rules[""])
    now = {entry(rule, mapping.privacy_key) for rule in rules}
    safe = {rule.path for rule in rules if rule.how is not Protect.HASH}
    return any(path not in safe for path, _ in already - now)
