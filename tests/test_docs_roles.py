"""The page of roles has the grants of the code."""

from __future__ import annotations

from pathlib import Path

from pipeline.aurora.schema.role_needs import ALL_TABLES, VERBS, Role, VerbNeeds

PAGE = Path(__file__).parents[1] / "docs/roles.md"
ORDER = ["SELECT", "INSERT", "UPDATE", "DELETE"]


def listed(privileges: frozenset[str]) -> str:
    return ", ".join(sorted(privileges, key=ORDER.index))


def row(each: VerbNeeds) -> str:
    needs = each.needs
    verb = f"`{each.verb}`" if each.verb.split()[0] not in {"the", "reading"} else each.verb
    if each.role is Role.OWNER:
        besides = "`CREATE` on the database; on the schemas of views `CREATE`, and `USAGE` with the grant option"
        return f"| {verb} | owner | owns them | owns it | {besides} |"
    if each.role is Role.READER:
        return f"| {verb} | reader | | | `SELECT` on the views |"
    books = [
        f"{listed(privileges)} on {'all tables' if name == ALL_TABLES else f'`{name}`'}"
        for name, privileges in sorted(needs.bookkeeping.items())
    ]
    besides = [
        text
        for applies, text in (
            (needs.temporary, "temporary tables"),
            (needs.creates, "`CREATE` on `replica`"),
            (needs.swaps, "`SET ROLE` to the owner"),
        )
        if applies
    ]
    return (
        f"| {verb} | {each.role.value} | {listed(needs.storage)} | {'; '.join(books)} | {', '.join(besides)} |".replace(
            "|  |", "| |"
        )
    )


def test_the_table_of_grants_is_the_codes() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    start = rows.index("| Verb | Role | On storage tables | On the bookkeeping | Besides |") + 2
    assert rows[start : start + len(VERBS)] == [row(each) for each in VERBS]
