"""The contract of a SQL type: what a codec says of it. What one leaves unsaid is as the defaults here have it.

Invariant: nothing outside a type's file asks for its name to know how it behaves. A codec without a fast form costs
speed alone: each of its values is then converted one by one, whatever way it comes.
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
    """A key of a column in a mapping file that is for columns of one type; the field of Column has its name."""

    name: str
    values: tuple[str, ...]
    remedy: str
    """What to write, where it is empty."""
    refusal: str
    """What a wrong value is not."""
    introduction: str
    """What stands before the right ones."""
    elsewhere: str
    """What is wrong with it in a column of another type, and the remedy."""
    description: str
    """For editors, by the JSON Schema."""


@dataclass(frozen=True, slots=True)
class Example:
    """Attribute values that docs/types.md shows for a column, with what the codec answers."""

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
    """Other names PostgreSQL has for it."""
    tags: frozenset[str]
    """Attribute types (AttributeValue tags) that it takes. NULL is taken by all: as NULL, unless it is one of these."""
    key_of: frozenset[str] = frozenset()
    """Types of key attributes of which it keeps two different values different."""
    takes_captures: bool = False
    """Whether a part captured from a text key may fill it; as a number where it is a key of numbers."""
    is_text: bool = False
    """Whether PostgreSQL orders it by a collation, so that its keys need "C"."""
    cuts_to_length: bool = False
    """Whether `on_error: truncate` cuts its texts."""
    parameters: tuple[int, int] = (0, 0)
    """How many it needs in brackets, and how many it takes."""
    check_params: Callable[[Params], None] = lambda _: None
    """Raises ValueError, with the remedy, for parameters that it does not take."""
    full_params: Callable[[Params], Params] = lambda params: params
    """Returns the parameters with those that are implied."""
    input_name: str = ""
    """Type to send values as, where it is another: an explicit cast to varchar(n) cuts silently, an assignment raises
    (PostgreSQL manual, character types)."""
    convert: Callable[[Use], Callable[[Any], str]]
    """Returns what turns an attribute value, bare, into the text that PostgreSQL reads, and raises UnrepresentableError
    for one that the column cannot hold. A key's text is canonical, so that equal keys are equal texts."""
    fast_form: Callable[[Column, bool], FastForm | None] = lambda _column, _is_key: None
    """Returns the form of values that need no conversion, or little. For `fast_form.fast_forms` alone to call."""
    default: Callable[[Field], AttributeValue | None] = _text_default
    """Reads a default from a mapping file, as DynamoDB would hold it; None when a problem was noted with it. Raises
    UnrepresentableError."""
    from_json: Callable[[object], AttributeValue | None] = lambda _: None
    """Takes a value parsed from jsonb for an attribute value where JSON does not tell its type; None: it does."""
    widened: Callable[[Params, SqlType], TypeChange] = lambda _params, _wanted: TypeChange.REFUSED
    """Returns what it takes to turn a column with these parameters into another type."""
    most_key_bytes: Callable[[Params], int] = lambda _: 0
    """Returns the bytes a key may take in an index; 0 for few, whatever it holds."""
    key_bytes: Callable[[str], int] = lambda _: 0
    """Returns the bytes that a key takes of those."""
    options: tuple[Option, ...] = ()
    examples: tuple[Example, ...] = ()
