"""The folder of mapping files: collisions between files, and one broken file beside good ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.yaml_fields import MappingError
from pipeline.mappings import load_each, load_mappings

if TYPE_CHECKING:
    from pathlib import Path


def write(folder: Path, file: str, *, name: str, table: str, target: str) -> Path:
    path = folder / file
    path.write_text(
        f"name: {name}\n"
        f"source: {{table: {table}, key: {{Id: N}}}}\n"
        f"targets:\n  {target}: {{primary_key: [Id], columns: {{Id: {{attribute: Id, type: bigint}}}}}}\n"
    )
    return path


def test_files_are_read_by_name_and_others_left_alone(tmp_path: Path) -> None:
    write(tmp_path, "b.yml", name="b", table="Bbb", target="B")
    write(tmp_path, "a.yaml", name="a", table="Aaa", target="A")
    (tmp_path / "notes.txt").write_text("not a mapping")
    (tmp_path / "c.yaml").mkdir()
    assert [mapping.name for mapping in load_mappings(tmp_path)] == ["a", "b"]
    assert [mapping.path for mapping in load_mappings(tmp_path)] == [f"{tmp_path}/a.yaml", f"{tmp_path}/b.yml"]


@pytest.mark.parametrize(
    ("name", "table", "target", "problem"),
    [
        ("a", "Bbb", "B", 'b.yaml:1: name: "a" is also the name of the mapping in {a}; rename one'),
        (
            "a_",
            "Bbb",
            "B",
            'b.yaml:1: name: "a_" would give Dagster the same names as "a" of {a};'
            ' rename one: more than "_" at the end must differ',
        ),
        (
            "b",
            "Aaa",
            "B",
            'b.yaml:2: source.table: table "Aaa" is also mapped by {a}; keep one file for each table, with a target for'
            " each kind of row",
        ),
        (
            "b",
            "Bbb",
            "public.A",
            "b.yaml:4: targets.public.A: the view public.A is also a target of {a}; rename one",
        ),
    ],
)
def test_files_that_collide(tmp_path: Path, name: str, table: str, target: str, problem: str) -> None:
    first = write(tmp_path, "a.yaml", name="a", table="Aaa", target="A")
    write(tmp_path, "b.yaml", name=name, table=table, target=target)
    with pytest.raises(MappingError) as raised:
        load_mappings(tmp_path)
    assert str(raised.value) == f"{tmp_path}/{problem.format(a=first)}"
    mappings, problems = load_each(tmp_path)
    assert [mapping.path for mapping in mappings] == [str(first)]
    assert len(problems) == 1


@pytest.mark.parametrize(("first", "second"), [("A", "A_history"), ("A_history", "A")])
def test_a_history_collides_with_a_target_of_its_name(tmp_path: Path, first: str, second: str) -> None:
    for name, target in (("a", first), ("b", second)):
        path = write(tmp_path, f"{name}.yaml", name=name, table=name * 3, target=target)
        if target == "A":
            path.write_text(path.read_text().replace("primary_key:", "history: {keep: 9d}, primary_key:"))
    with pytest.raises(MappingError, match="rename one") as raised:
        load_mappings(tmp_path)
    assert "history" in str(raised.value)


def test_one_view_name_in_two_schemas_is_no_collision(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", name="a", table="Aaa", target="Same")
    write(tmp_path, "b.yaml", name="b", table="Bbb", target="hr.Same")
    assert len(load_mappings(tmp_path)) == 2


def test_a_broken_file_does_not_hide_the_others(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", name="A", table="Aaa", target="A")
    (tmp_path / "b.yaml").write_bytes(b"name: b\nsource: {table: B\xe9b\n")
    write(tmp_path, "c.yaml", name="c", table="Ccc", target="C")
    mappings, problems = load_each(tmp_path)
    assert [mapping.name for mapping in mappings] == ["c"]
    assert [(problem.line, problem.field) for problem in problems] == [(1, "name"), (2, "")]
    assert problems[1].what == "is not UTF-8 text; save it as UTF-8"
    with pytest.raises(MappingError, match="2 problems"):
        load_mappings(tmp_path)


def test_what_is_named_like_a_mapping_and_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.YAML", name="a", table="Aaa", target="A")
    (tmp_path / "b.yaml").symlink_to(tmp_path / "gone.yaml")
    mappings, problems = load_each(tmp_path)
    assert [mapping.name for mapping in mappings] == ["a"]
    assert [problem.what for problem in problems] == [
        "cannot be read (no such file or directory); check its permissions"
    ]


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "tables").write_text("")
    with pytest.raises(ConfigurationError, match=f"{tmp_path}/tables is a file, not a folder"):
        load_each(tmp_path / "tables")


def test_a_byte_order_mark_is_no_problem(tmp_path: Path) -> None:
    path = write(tmp_path, "a.yaml", name="a", table="Aaa", target="A")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_mappings(tmp_path)[0].name == "a"


def test_an_absent_or_empty_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=f"there is no folder {tmp_path}/none; set DYNAURORA_TABLES"):
        load_mappings(tmp_path / "none")
    with pytest.raises(ConfigurationError, match=f"folder {tmp_path} has no \\*.yaml file; set DYNAURORA_TABLES"):
        load_each(tmp_path)
