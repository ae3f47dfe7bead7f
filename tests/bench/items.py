"""The items of the benchmark, made from a seed, so that every machine has the same.

Narrow is the seed's `Employees`. Wide has twenty attributes of every type, about 1.1 KB an item, with values that other
tools get wrong: numbers of 38 digits and of large exponents, numbers inside lists and maps, quotes and escapes, U+0000,
NULL and missing attributes, attributes in another order from item to item.
"""

from __future__ import annotations

import base64
import random
import uuid
from collections.abc import Iterator
from typing import Any

from tests.bench.shapes import VARIED, WIDE, Shape

Item = dict[str, dict[str, Any]]

_FIRST = [
    "Akua",
    "Zoë",
    "José",
    "Li",
    "Мария",
    "Sam",
    "Nils",
    "Ana",
    "Kwame",
    "Chloé",
    "Bjørn",
    "Ivy",
    "太郎",
    "Priya",
    "Tom",
    "Eve",
]
_LAST = [
    "Mensah",
    "Müller",
    "García",
    "Wang",
    "Иванова",
    "Smith",
    "Hansen",
    "Costa",
    "Boateng",
    "Dupont",
    "Berg",
    "Stone",
    "山田",
    "Patel",
    "Hill",
    "O'Neil",
]
_CITIES = ["Accra", "Berlin", "São Paulo", "Shenzhen", "Moscow", "London", "Oslo", "Lisbon", "Kumasi", "Lyon"]
_STATES = ["ACTIVE", "PENDING", "CLOSED", "SUSPENDED"]
_WORDS = [
    "lorem",
    "ipsum",
    "dolor",
    "sit",
    "amet",
    "consectetur",
    "adipiscing",
    "elit",
    "sed",
    "do",
    "eiusmod",
    "tempor",
    "incididunt",
    "ut",
    "labore",
    "et",
    "dolore",
    "magna",
    "aliqua",
    "enim",
    "minim",
    "veniam",
    "quis",
    "nostrud",
]
# Texts that confuse COPY, arrays, JSON or a NULL mark, each in one of a thousand items.
_AWKWARD = ["\r\n tab\t end\\", "\\N", "", "\\", "control \x01 \x02 \x1f \x7f end", "literal \\u0000, no NUL 😀", "\\."]
_AWKWARD_TAGS = ["", " space ", "NULL", "b\\ack", 'q"uote', "with,comma", "{brace}"]
_same = random.Random(5)
# The attributes of wide items come in one of these orders.
_ORDERS = [[field.attribute for field in _same.sample(WIDE.fields, len(WIDE.fields))] for _ in range(16)]


def items(shape: Shape, count: int, part: int, parts: int) -> Iterator[Item]:
    """Yield the items of one of `parts` files, in no order of their keys; the keys of all files are one range."""
    choose = random.Random(1000 + part)
    numbers = list(range(part, count, parts))
    choose.shuffle(numbers)
    if shape.fields == WIDE.fields:
        for number in numbers:
            item = wide(number, choose)
            yield _varied(item, choose) if shape is VARIED else item
    elif shape.name in OTHER_ITEMS:
        for number in numbers:
            yield {"id": {"N": str(number + 1)}, **OTHER_ITEMS[shape.name](number, choose)}
    else:
        for number in numbers:
            yield _narrow(number, choose)


def _narrow(number: int, choose: random.Random) -> Item:
    return {
        "Id": {"N": str(number + 1)},
        "empName": {"S": f"{choose.choice(_FIRST)} {choose.choice(_LAST)}"},
        "empDepartment": {"S": f"Dept {choose.randint(1, 999)}"},
    }


def order(number: int, choose: random.Random) -> Item:
    """Return an order's attributes besides its key."""
    lines = [
        {
            "M": {
                "sku": {"S": f"SKU-{_digits(choose, 6)}"},
                "quantity": {"N": str(choose.randint(1, 50))},
                "price": {"N": _hundredths(choose, 999)},
            }
        }
        for _ in range(4)
    ]
    return {
        "customer": {"S": f"{choose.choice(_FIRST)} {choose.choice(_LAST)} {number % 1000}"},
        "placed": {"S": _time(choose)},
        "total": {"N": _hundredths(choose, 9999)},
        "lines": {"L": lines},
    }


def embedding(_: int, choose: random.Random) -> Item:
    """Return a document's attributes besides its key: 1,536 numbers, as models give them."""
    return {"embedding": {"L": [{"N": f"{choose.uniform(-0.1, 0.1):.8f}1"} for _ in range(1_536)]}}


OTHER_ITEMS = {"children": order, "embeddings": embedding}
"""By shape, the attributes of an item besides its key, a number."""


def wide(i: int, choose: random.Random) -> Item:
    """Return a wide item."""
    first, last = choose.choice(_FIRST), choose.choice(_LAST)
    item: Item = {
        "pk": {"S": f"cust#{uuid.UUID(int=choose.getrandbits(128))}"},
        "email": {"S": f"{first.lower()}{i}@example.com"},
        "name": {"S": f"{first} {last}"},
        "status": {"S": choose.choice(_STATES)},
        "city": {"S": choose.choice(_CITIES)},
        "created": {"S": _time(choose)},
        "descr": {"S": _description(i, choose)},
        "ref": {"S": f"{_digits(choose, 8)}-{_digits(choose, 4)}"},
        "qty": {"N": str(choose.randint(0, 100_000))},
        "price": {"N": _hundredths(choose, 99_999)},
        "big38": {"N": _big(i, choose)},
        "sci": {"N": _scientific(i, choose)},
        "ver": {"N": str(choose.randint(1, 2**62))},
        "active": {"BOOL": choose.random() < 0.8},
        "vip": {"BOOL": choose.random() < 0.1},
        "blob": {"B": base64.b64encode(choose.randbytes(48)).decode()},
        "tags": {"SS": _tags(i, choose)},
        "lines": {"L": _lines(i, choose)},
        "profile": {"M": _profile(i, choose)},
    }
    if i % 5:
        item["opt"] = {"S": f"opt-{choose.choice(_WORDS)}"}
    elif choose.random() < 0.5:
        item["opt"] = {"NULL": True}
    return {name: item[name] for name in choose.choice(_ORDERS) if name in item}


def _varied(item: Item, choose: random.Random) -> Item:
    """Give the list another length and order, leave members out of the map, and change the map's order too."""
    elements, members = item["lines"]["L"], list(item["profile"]["M"].items())
    lines = choose.choices(elements, k=choose.randint(0, 2 * len(elements)))
    profile = dict(choose.sample(members, choose.randint(0, len(members))))
    return {**item, "lines": {"L": lines}, "profile": {"M": profile}}


def _digits(choose: random.Random, count: int) -> str:
    return str(choose.randint(10 ** (count - 1), 10**count - 1))


def _hundredths(choose: random.Random, most: int) -> str:
    return f"{choose.randint(0, most)}.{choose.randint(0, 9)}{choose.randint(1, 9)}"


def _time(choose: random.Random) -> str:
    day = f"2024-{choose.randint(1, 12):02d}-{choose.randint(1, 28):02d}"
    clock = f"{choose.randint(0, 23):02d}:{choose.randint(0, 59):02d}:{choose.randint(0, 59):02d}"
    return f"{day}T{clock}.{choose.randint(0, 999):03d}Z"


def _description(i: int, choose: random.Random) -> str:
    text = " ".join(choose.choices(_WORDS, k=18))
    if i % 10_000 == 7:
        return f"nul\x00inside\x00\x00{text[:20]}"
    rare = i % 1000
    if rare < 20:
        return f'line one\nline two\t"quoted" back\\slash {text}'
    return _AWKWARD[rare - 20] if rare - 20 < len(_AWKWARD) else text


def _big(i: int, choose: random.Random) -> str:
    """Return a number of 38 digits, mostly; it never ends in a zero, which DynamoDB would not keep."""
    digits = _digits(choose, 37) + str(choose.randint(1, 9))
    forms = [f"-{digits}", f"{digits[:20]}.{digits[20:]}", f"0.{digits}", digits[:12]]
    return forms[i % 5] if i % 5 < len(forms) else digits


def _scientific(i: int, choose: random.Random) -> str:
    if i % 4:
        return str(choose.randint(0, 10**9))
    return f"{choose.randint(1, 9)}.{choose.randint(1, 10**6) * 10 + 1}E{choose.choice('+-')}{choose.randint(30, 120)}"


def _tags(i: int, choose: random.Random) -> list[str]:
    if i % 1000 == 40:
        return _AWKWARD_TAGS
    tags = sorted({choose.choice(_WORDS) for _ in range(choose.randint(1, 5))})
    return ["a\x00b", "ok"] if i % 10_000 == 8 else tags


def _lines(i: int, choose: random.Random) -> list[dict[str, Any]]:
    unit = f"0.{_digits(choose, 36)}1" if i % 50 == 0 else "1.5"
    member = {"sku": {"S": f"SKU-{_digits(choose, 6)}"}, "qty": {"N": str(choose.randint(1, 50))}, "unit": {"N": unit}}
    return [
        {"S": choose.choice(_WORDS)},
        {"N": _hundredths(choose, 9999)},
        {"BOOL": choose.random() < 0.5},
        {"NULL": True},
        {"M": member},
    ]


def _profile(i: int, choose: random.Random) -> dict[str, dict[str, Any]]:
    rare = i % 1000
    place = [{"N": f"{choose.uniform(-90, 90):.5f}1"}, {"N": f"{choose.uniform(-180, 180):.5f}1"}]
    address = {
        "street": {"S": f"{choose.randint(1, 999)} {choose.choice(_WORDS)} St"},
        "zip": {"S": _digits(choose, 5)},
        "geo": {"L": place},
    }
    profile: dict[str, dict[str, Any]] = {
        "address": {"M": address},
        "score": {"N": _digits(choose, 37) + "1" if i % 3 == 0 else "12.5"},
        "langs": {"L": [{"S": "en"}, {"S": choose.choice(["de", "fr", "tw"])}]},
        "note": {"S": 'say "hi"\n' if rare < 50 else choose.choice(_WORDS)},
    }
    if i % 10_000 == 9:
        profile["note"] = {"S": "jsonb\x00nul"}
    if rare == 60:  # names that are also type tags
        profile |= {"S": {"S": "tricky"}, "M": {"M": {"N": {"N": "7"}, "S": {"M": {}}}}, "L": {"L": []}}
    return profile
