"""An attribute's profile over a sample of items, and the column that the evidence suggests.

Invariant: a proposed column accepts every value that was seen, exactly. If the evidence is thin or mixed, the wider
type is proposed, because a value that a column cannot hold makes its whole record a reject.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline.core.discover import observations as seen

if TYPE_CHECKING:
    from decimal import Decimal

# Fewer values than this are no evidence that numbers are always whole.
ENOUGH_VALUES = 20
# 18 digits always fit bigint; a 19th may not.
_BIGINT_DIGITS = 18
_BY_TAG = {
    "BOOL": "boolean",
    "B": "bytea",
    "SS": "text[]",
    "NS": "numeric[]",
    "BS": "bytea[]",
    "L": "jsonb",
    "M": "jsonb",
}
_TIME_WORDS = ("at", "time", "date", "timestamp", "ts", "ttl", "expires", "expiry", "expiration", "created", "updated",
               "modified", "until", "since", "on")  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttributeProfile:
    """What was seen of one attribute. Counts are counts of items."""

    path: str
    items: int
    """Items of the sample, whether they have it or not."""
    tags: dict[str, int]
    """Items by attribute type, the most frequent first; NULL is one of them."""
    forms: dict[str, int] = field(default_factory=dict[str, int])
    """Items by the form of their text or number, the most frequent first."""
    shortest: int = 0
    longest: int = 0
    usual_length: int = 0
    """The median."""
    smallest: Decimal | None = None
    largest: Decimal | None = None
    whole_digits: int = 0
    fraction_digits: int = 0

    @property
    def present(self) -> int:
        """Items that have the attribute."""
        return sum(self.tags.values())

    @property
    def presence(self) -> float:
        """Share of the items that have the attribute, 0 to 1."""
        return self.present / self.items if self.items else 0.0

    @property
    def valued_tags(self) -> dict[str, int]:
        """The types except NULL, which every column accepts."""
        return {tag: count for tag, count in self.tags.items() if tag != "NULL"}


@dataclass(frozen=True, slots=True)
class Proposal:
    """A column type, or None if there is no evidence for any, and remarks about it."""

    type: str | None
    epoch: str | None = None
    remarks: tuple[str, ...] = ()


def propose(profile: AttributeProfile, *, key_tag: str | None = None) -> Proposal:
    """Propose a column for an attribute; `key_tag` is its declared type if it belongs to the key."""
    if key_tag is not None:
        return _propose_key(profile, key_tag)
    tags = profile.valued_tags
    if not tags:
        return Proposal(None, remarks=("always NULL: nothing shows its type",))
    if len(tags) > 1:
        shares = ", ".join(f"{tag} in {count:,}" for tag, count in tags.items())
        return Proposal("jsonb", remarks=(f"mixed types ({shares}): jsonb accepts them all",))
    (tag,) = tags
    if tag == "N":
        return _propose_number(profile)
    return _propose_text(profile) if tag == "S" else Proposal(_BY_TAG[tag])


def evidence(profile: AttributeProfile) -> str:
    """Return in words what was seen, without any value: a comment for a file that people share."""
    parts = [f"in {share(profile.present, profile.items)} of the items", " and ".join(profile.tags)]
    if "S" in profile.tags:
        usually = f", usually {profile.usual_length:,}" if profile.usual_length else ""
        parts.append(f"up to {profile.longest:,} characters{usually}")
    if "B" in profile.tags:
        parts.append(f"up to {profile.longest:,} bytes")
    if profile.smallest is not None:
        parts.append(_digits(profile))
    if {"SS", "NS", "BS", "L", "M"} & set(profile.tags):
        parts.append(f"up to {profile.longest:,} elements")
    if "NULL" in profile.tags and len(profile.tags) > 1:
        parts.append(f"NULL in {share(profile.tags['NULL'], profile.items)}")
    return ", ".join(parts)


def share(part: int, whole: int) -> str:
    """Return a share for people; never 100 % if it is not all, nor 0 % if there is some."""
    if part in {0, whole}:
        return "0 %" if not part else "100 %"
    percent = 100 * part / whole
    if percent < 0.1:
        return "under 0.1 %"
    return f"{min(percent, 99.9):.1f} %"


def _digits(profile: AttributeProfile) -> str:
    sign = "negative too, " if profile.smallest is not None and profile.smallest < 0 else ""
    after = f" and {profile.fraction_digits} after" if profile.fraction_digits else ""
    return f"{sign}up to {profile.whole_digits} digits before the point{after}"


def _propose_key(profile: AttributeProfile, tag: str) -> Proposal:
    if tag == "N":
        return Proposal(_whole_or_numeric(profile))
    # A key stays text: a uuid or date column would refuse the first key that has another form.
    remark = _all_of(profile, seen.UUID, seen.DATE) if tag == "S" else None
    return Proposal("text" if tag == "S" else "bytea", remarks=(f"every value is a {remark}",) if remark else ())


def _propose_number(profile: AttributeProfile) -> Proposal:
    form = _all_of(profile, seen.SECONDS, seen.MILLISECONDS)
    if form is None:
        return Proposal(_whole_or_numeric(profile), remarks=_thin(profile))
    unit = form.removeprefix("epoch ")
    if _sounds_like_time(profile.path) and profile.present >= ENOUGH_VALUES:
        return Proposal("timestamptz", unit, (f"every value is a time from 2000 to 2100 in {unit} since 1970",))
    remark = f"could be {form}: {{type: timestamptz, epoch: {unit}}}"
    return Proposal(_whole_or_numeric(profile), remarks=(remark, *_thin(profile)))


def _whole_or_numeric(profile: AttributeProfile) -> str:
    fits = not profile.fraction_digits and profile.whole_digits <= _BIGINT_DIGITS
    return "bigint" if fits and profile.valued_tags.get("N", 0) >= ENOUGH_VALUES else "numeric"


def _thin(profile: AttributeProfile) -> tuple[str, ...]:
    few = not profile.fraction_digits and profile.valued_tags.get("N", 0) < ENOUGH_VALUES
    return ("whole so far, but too few values to rely on it",) if few else ()


def _propose_text(profile: AttributeProfile) -> Proposal:
    types = {seen.UUID: "uuid", seen.DATE: "date", seen.TIME: "timestamptz"}
    form = _all_of(profile, *types)
    if form:
        return Proposal(types[form], remarks=("kept as a moment, shown in UTC",) if form == seen.TIME else ())
    remarks = {
        seen.LOCAL_TIME: "times without an offset: they cannot become timestamptz",
        seen.NUMBER: "every value is a number in text: {type: numeric} accepts them",
        seen.UUID_UPPER: "UUIDs in upper case, which a uuid column would show in lower case",
        seen.JSON: "every value looks like JSON in text",
    }
    form = _all_of(profile, *remarks)
    if form:
        return Proposal("text", remarks=(remarks[form],))
    frequent = [f"{name} in {count:,}" for name, count in profile.forms.items() if name and name != seen.EMPTY]
    return Proposal("text", remarks=(f"of mixed forms: {', '.join(frequent)}",) if frequent else ())


def _all_of(profile: AttributeProfile, *wanted: str) -> str | None:
    return next((form for form in wanted if list(profile.forms) == [form]), None)


def _sounds_like_time(path: str) -> bool:
    words: list[str] = []
    for part in path.replace("-", "_").replace(".", "_").split("_"):
        word = ""
        for character in part:
            if character.isupper() and word and not word[-1].isupper():
                words.append(word.lower())
                word = ""
            word += character
        words.append(word.lower())
    return any(word in _TIME_WORDS for word in words)
