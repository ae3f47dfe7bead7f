"""A FilterSpecification of an export, as far as the local stack supports it: a projection to whole attributes.

Invariant: what would have to be approximated, an expression over values or a path into a map, is refused.
"""

import json
import re

from pipeline.local.history import to_json
from pipeline.local.raw_aws import AwsError, Json

_NAME = re.compile(r"#?[A-Za-z_][A-Za-z0-9_]*")


def projected_attributes(request: Json) -> frozenset[str]:
    """The attributes that the request's projection keeps; empty if there is no projection."""
    specification: Json = request.get("FilterSpecification") or {}
    if specification.keys() - {"ProjectionExpression", "ExpressionAttributeNames"}:
        raise AwsError("ValidationException", "The local stack filters exports by a ProjectionExpression only")
    expression: str = specification.get("ProjectionExpression") or ""
    words = [word.strip() for word in expression.split(",")] if expression else []
    if not all(_NAME.fullmatch(word) for word in words):
        raise AwsError("ValidationException", "The local stack projects exports to whole attributes only")
    names: dict[str, str] = specification.get("ExpressionAttributeNames") or {}
    return frozenset(names.get(word, word) for word in words)


def project(items: dict[str, str], attributes: frozenset[str]) -> dict[str, str]:
    """The items, as JSON by key, with only these attributes; all attributes if there is no projection."""
    if not attributes:
        return items
    return {
        key: to_json({name: value for name, value in json.loads(item).items() if name in attributes})
        for key, item in items.items()
    }
