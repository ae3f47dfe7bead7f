"""Generates, for each target, the function that decodes a usual stream record to its change.

It is the generated row (`pipeline.core.decode.row_code`) with the record around it, all in one function, because each
call costs a twentieth of what a record does. Whatever is not usual raises: then the stream decoder's general path gets
the record, and decides.

Invariant: a change equals the one of the general path. A record that the general path rejects raises.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline.core.decode.row_code import compiled, written_row
from pipeline.core.model.change import Change
from pipeline.core.streams.positions import streamed_position

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from pipeline.core.decode.row_decoder import RowDecoder

PUTS = ("INSERT", "MODIFY")
_TTL_SERVICE = "dynamodb.amazonaws.com"
_FUNCTION = """\
def change(record, origin, stream_label):
    found = record["dynamodb"]
    keys = found["Keys"]
    position = streamed_position(stream_label, found["SequenceNumber"], found["ApproximateCreationDateTime"])
    event = record["eventName"]
    if event == "REMOVE":
        return Change(key(keys), None, position, expired(record), origin)
    item = found["NewImage"]
    if event not in PUTS or keys != {{{keys}}}:
        raise ValueError("not a usual record")
    get = item.get
{body}
    return Change(({key}), ({variables},), position, False, origin)
"""


def record_function(decoder: RowDecoder) -> Callable[[Mapping[str, Any], int, str], Change] | None:
    """Return the function, which takes a record, its index and the stream's label; None if there is no fast path."""
    names = {
        "Change": Change, "PUTS": PUTS, "expired": expired, "key": decoder.key, "streamed_position": streamed_position,
    }  # fmt: skip
    row = written_row(decoder, names)
    if row is None:
        return None
    target, columns = decoder.target, [column.name for column in decoder.target.columns]
    # Where the key attributes are those of the image, so is the row's key.
    keys = dict.fromkeys(name for name, _ in target.match)
    keys |= dict.fromkeys(str(column.path[0]) for column in target.key_columns if column.capture is None)
    source = _FUNCTION.format(
        body="\n".join(f"    {line}" for line in row.body),
        key="".join(f"c{columns.index(name)}, " for name in target.primary_key),
        keys=", ".join(f"{name!r}: item[{name!r}]" for name in keys),
        variables=", ".join(row.variables),
    )
    found: Callable[[Mapping[str, Any], int, str], Change]
    found = compiled(source, f"<record of {target.view_name}>", names)["change"]
    return found


def expired(record: Mapping[str, Any]) -> bool:
    """Whether time to live removed the item (DynamoDB guide, time-to-live-ttl-streams)."""
    identity: dict[str, Any] | None = record.get("userIdentity")
    if not identity:
        return False
    who = {name.lower(): value for name, value in identity.items()}
    return who.get("type") == "Service" and who.get("principalid") == _TTL_SERVICE
