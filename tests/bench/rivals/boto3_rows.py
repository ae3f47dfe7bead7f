"""Rows as boto3 users make them: its TypeDeserializer for every value, JSON by hand so that Decimal keeps its digits.

Shared by the rivals that go through Python rows. What the deserializer cannot distinguish is lost here, as it would be
for its users.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

from boto3.dynamodb.types import Binary, TypeDeserializer

from tests.bench.contest import Spec
from tests.bench.reference import holds_nul, to_json
from tests.bench.shapes import SHAPES, Field

Row = list[Any]


def rows(spec: Spec) -> Iterator[Row]:
    """Yield the rows of the export, one value a column."""
    shape, deserialize = SHAPES[spec.shape], cast("Callable[[Any], Any]", TypeDeserializer().deserialize)
    defaults = dict(shape.defaults)
    for path in spec.files:
        with gzip.open(path) as lines:
            for line in lines:
                item: dict[str, dict[str, Any]] = json.loads(line)["Item"]
                for attribute in item.values():
                    if "B" in attribute:  # an export has base64 text where the API has bytes
                        attribute["B"] = base64.b64decode(attribute["B"])
                plain: dict[str, Any] = {name: deserialize(attribute) for name, attribute in item.items()}
                yield [_value(f, plain.get(f.attribute, defaults.get(f.column))) for f in shape.fields]


def _value(field: Field, value: Any) -> Any:  # noqa: ANN401 - of any type
    if isinstance(value, set):
        value = sorted(cast("set[str]", value))
    if field.nul_is_null and holds_nul(value):
        return None
    if field.tag in {"L", "M"}:
        return to_json(value)
    return bytes(cast("Any", value)) if isinstance(value, Binary) else value
