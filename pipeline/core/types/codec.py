"""The contract of a SQL type's codec, with a default for everything optional.

Invariant: nothing outside a type's file asks for its name to know how it behaves. A codec without a fast form only
costs speed: each of its values is then converted one by one, on every path.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.core.model.attributes import AttributeValue
from pipeline.core.model.mapping import Column
from pipeline.core.types.fast.fast_form import FastForm
from pipeline.core.types.widening import TypeChange

if TYPE_CHECKING:
    from pipeline.core.mapping_files.yaml_fields import Field
    from pipeline.core.types.sql_types import SqlType

Params = tuple[int, ...]


class Use(NamedTuple):
    """What a conversion is for: attribute values of type `tag`, for a column."""

    tag: str
    column: Column
    is_key: bool
    settled: Counter[str] | None
    """Counts, by column, the values that are cut."""


@dataclass(frozen=True, slots=True)
class Option:
    """A key of a column in a mapping file that applies to columns of one type. Column has a field of the same name."""

    name: str
    values: tuple[str, ...]
    remedy: str
    """What to write if it is empty."""
    refusal: str
    """The end of the message for a wrong value: `"…" is not a unit`."""
    introduction: str
    """The words before the list of right values."""
    elsewhere: str
    """What is wrong with it in a column of another type, and the remedy."""
    description: str
    """For editors, through the JSON Schema."""


@dataclass(frozen=True, slots=True)
class Example:
    """Attribute values that docs/types.md shows for a column, with the codec's answer."""

    values: tuple[AttributeValue, ...]
    params: Params = ()
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def _text_default(field: Field) -> AttributeValue | None:
    text = field.text()
    return None if text is None else {"S": text}


@dataclass(frozen=True, slots=True, kw_only=True)
class Codec:
    """A SQL type."""

    name: str
    aliases: tuple[str, ...] = ()
    """PostgreSQL's other names for it."""
    tags: frozenset[str]
    """Attribute types (AttributeValue tags) that it accepts. All accept NULL: as NULL, unless NULL is one of these."""
    key_of: frozenset[str] = frozenset()
    """Types of key attributes whose distinct values stay distinct in it."""
    takes_captures: bool = False
    """Whether a part captured from a text key may fill it; as a number if it can be a key of numbers."""
    is_text: bool = False
    """Whether PostgreSQL orders it by a collation, so that its keys need "C"."""
    cuts_to_length: bool = False
    """Whether `on_error: truncate` cuts its texts."""
    parameters: tuple[int, int] = (0, 0)
    """How many parameters it needs in brackets, and how many it accepts."""
    check_params: Callable[[Params], None] = lambda _: None
    """Raises ValueError, with the remedy, for parameters that it does not accept."""
    full_params: Callable[[Params], Params] = lambda params: params
    """Returns the parameters, including implied ones."""
    input_name: str = ""
    """The type to send values as, if it is another: an explicit cast to varchar(n) cuts silently, an assignment raises
    (PostgreSQL manual, character types).
    """
    convert: Callable[[Use], Callable[[Any], str]]
    """Returns a function that turns a bare attribute value into the text that PostgreSQL reads, and raises
    UnrepresentableError for one that the column cannot hold. A key's text is canonical, so equal keys have equal texts.
    """
    fast_form: Callable[[Column, bool], FastForm | None] = lambda _column, _is_key: None
    """Returns the form of values that need little or no conversion. Only `fast_form.fast_forms` may call it."""
    default: Callable[[Field], AttributeValue | None] = _text_default
    """Reads a default from a mapping file, as DynamoDB would store it; None if a problem was noted with it. Raises
    UnrepresentableError.
    """
    from_json: Callable[[object], AttributeValue | None] = lambda _: None
    """Returns the attribute value for a value parsed from jsonb, if JSON alone does not show its type; None if it does.
    """
    widened: Callable[[Params, SqlType], TypeChange] = lambda _params, _wanted: TypeChange.REFUSED
    """Returns what is needed to turn a column with these parameters into another type."""
    most_key_bytes: Callable[[Params], int] = lambda _: 0
    """Returns the most bytes that a key may take in an index; 0 if always few."""
    key_bytes: Callable[[str], int] = lambda _: 0
    """Returns how many of those bytes a key takes."""
    index_methods: frozenset[str] = frozenset({"btree", "brin"})
    """The methods of PostgreSQL that can index it without an extension."""
    options: tuple[Option, ...] = ()
    examples: tuple[Example, ...] = ()
