"""Converts items between the SDK's form and the form that everything else in Dynaurora uses.

They differ in one thing: binary is `bytes` in the SDK, and base64 text on the wire, in exports and in Lambda's events.
Invariant: converting in one direction and back gives the same item.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.model.attributes import AttributeValue, Item

_PLAIN = {"S", "N", "BOOL", "NULL", "SS", "NS"}


def to_wire(item: Mapping[str, Any]) -> Item:
    """Return an item of the SDK's low-level client with binary as base64 text."""
    return {name: _convert(value, _encode) for name, value in item.items()}


def from_wire(item: Mapping[str, AttributeValue]) -> dict[str, Any]:
    """Return an item for the SDK's low-level client, binary as bytes. Raises ValueError if it is not base64."""
    return {name: _convert(value, _decode) for name, value in item.items()}


def _encode(value: bytes) -> str:
    return b64encode(value).decode()


def _decode(value: str) -> bytes:
    return b64decode(value, validate=True)


def _convert(attribute: Mapping[str, Any], binary: Callable[[Any], Any]) -> AttributeValue:
    tag, value = next(iter(attribute.items()))
    if tag in _PLAIN:
        return {tag: value}
    if tag == "B":
        return {tag: binary(value)}
    if tag == "BS":
        return {tag: [binary(part) for part in value]}
    if tag == "L":
        return {tag: [_convert(part, binary) for part in value]}
    members = cast("dict[str, Any]", value)
    return {tag: {name: _convert(part, binary) for name, part in members.items()}}
