"""The table of the exam: a column of every type, and a handwritten rule for the row that each item must show.

Invariant: `row_of` shares nothing with the product's codec, so an error in the codec cannot hide itself.
"""

from __future__ import annotations

import base64
import json
import uuid
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

TABLE = "Ledger"
MAPPING = """\
name: ledger
source: {table: Ledger, key: {Id: N}}
targets:
  Ledger:
    primary_key: [Id]
    columns:
      Id: {attribute: Id, type: bigint}
      Holder: {attribute: holder, type: text}
      Amount: {attribute: amount, type: "numeric(30,8)"}
      Grade: {attribute: grade, type: smallint}
      Visits: {attribute: visits, type: integer}
      Serial: {attribute: serial, type: bigint}
      Ratio: {attribute: ratio, type: double precision}
      Paid: {attribute: paid, type: boolean}
      Branch: {attribute: branch, type: varchar(12)}
      Token: {attribute: token, type: uuid}
      Opened: {attribute: opened, type: date}
      Moment: {attribute: moment, type: timestamptz, epoch: milliseconds}
      Scan: {attribute: scan, type: bytea}
      Tags: {attribute: tags, type: "text[]"}
      Marks: {attribute: marks, type: "numeric[]"}
      Address: {attribute: address, type: jsonb}
    unmapped: attributes
"""

_BRANCHES = ("north", "south", "east", "west", "over the sea")
_FIRST_DAY, _FIRST_MOMENT = date(1999, 1, 1), 915_148_800_000
# What an item has in addition to what all have: by its Id, so that each column is filled in many rows.
_SPARSE = (
    "grade",
    "visits",
    "serial",
    "ratio",
    "branch",
    "token",
    "opened",
    "moment",
    "scan",
    "tags",
    "marks",
    "address",
)


def item(identifier: int, version: int) -> dict[str, Any]:
    """Return the item in DynamoDB's wire form; each version is another state of it."""
    seed = (identifier * 31 + version) % 10**8
    values: dict[str, Any] = {
        "grade": {"N": str(seed % 30_000)},
        "visits": {"N": str(seed * 7)},
        "serial": {"N": str(seed * 1_000_003)},
        "ratio": {"N": f"{seed}.5"},
        "branch": {"S": _BRANCHES[seed % len(_BRANCHES)]},
        "token": {"S": str(uuid.UUID(int=seed << 64))},
        "opened": {"S": (_FIRST_DAY + timedelta(days=seed % 9_000)).isoformat()},
        "moment": {"N": str(_FIRST_MOMENT + seed * 1_001)},
        "scan": {"B": base64.b64encode(seed.to_bytes(9, "big")).decode()},
        "tags": {"SS": [f"t{seed % 97}", "ledger"]},
        "marks": {"NS": [f"{seed}.25", "-1"]},
        "address": {"M": {"street": {"S": f"Ängvägen {seed}"}, "floor": {"N": f"{seed}.10"}, "gate": {"NULL": True}}},
    }
    wire: dict[str, Any] = {
        "Id": {"N": str(identifier)},
        "holder": {"S": f"holder {identifier} v{version}"},
        "amount": {"N": f"{seed}.00000001"},
        "paid": {"BOOL": seed % 2 == 0},
    }
    for offset in (0, 5, 7):
        name = _SPARSE[(identifier + offset) % len(_SPARSE)]
        wire[name] = values[name]
    if identifier % 10 == 3:
        wire["remark"] = {"S": f"no column takes this {seed}"}
    return wire


COLUMNS = (
    "Id", "Holder", "Amount", "Grade", "Visits", "Serial", "Ratio", "Paid", "Branch", "Token", "Opened", "Moment",
    "Scan", "Tags", "Marks", "Address",
)  # fmt: skip


def row_of(wire: dict[str, Any]) -> tuple[Any, ...]:
    """Return the row that the view must show for an item, in the order of COLUMNS, by a handwritten rule."""

    def of(name: str, kind: str) -> Any:  # noqa: ANN401 - attribute values
        return wire[name][kind] if name in wire else None

    moment, ratio, scan, address = of("moment", "N"), of("ratio", "N"), of("scan", "B"), of("address", "M")
    return (
        int(wire["Id"]["N"]),
        of("holder", "S"),
        _number(of("amount", "N")),
        _whole(of("grade", "N")),
        _whole(of("visits", "N")),
        _whole(of("serial", "N")),
        None if ratio is None else float(ratio),
        of("paid", "BOOL"),
        of("branch", "S"),
        None if "token" not in wire else uuid.UUID(wire["token"]["S"]),
        None if "opened" not in wire else date.fromisoformat(wire["opened"]["S"]),
        None if moment is None else datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=int(moment)),
        None if scan is None else base64.b64decode(scan),
        None if "tags" not in wire else sorted(wire["tags"]["SS"]),
        None if "marks" not in wire else sorted(map(Decimal, wire["marks"]["NS"])),
        None
        if address is None
        else json.dumps(
            {"street": address["street"]["S"], "floor": address["floor"]["N"], "gate": None}, sort_keys=True
        ),
    )


def _number(text: str | None) -> Decimal | None:
    return None if text is None else Decimal(text)


def _whole(text: str | None) -> int | None:
    return None if text is None else int(text)
