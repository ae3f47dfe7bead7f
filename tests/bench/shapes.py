"""The kinds of items in the benchmark: their attributes, their table, their mapping.

Invariant: it uses only the standard library, because the rivals' environment does not have our packages. A column has
the same name whoever fills it, so that one checksum compares every result.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Field:
    """One attribute: its name and DynamoDB type, its column and PostgreSQL type."""

    attribute: str
    tag: str
    column: str
    type: str
    nul_is_null: bool = False
    """Whether text with U+0000, which PostgreSQL cannot hold, becomes NULL (`on_error: null`)."""


@dataclass(frozen=True)
class Shape:
    """Items of one kind. The first field is the key."""

    name: str
    table: str
    fields: tuple[Field, ...]
    defaults: tuple[tuple[str, str], ...] = ()
    unmapped: str | None = None
    indexes: tuple[tuple[str, ...], ...] = ()
    """Columns of each index besides the key's."""
    items_of: str = ""
    """The shape whose items it has, if they are not its own."""
    key_columns: int = 1
    """How many fields, the first ones, are the primary key."""
    child: Shape | None = None
    """The table of a list's elements: its parent's key, their place, then their own fields."""
    explode: str = ""
    """Of a child, the list's attribute."""
    history: str = ""
    """How long every version is kept, if it has a history."""

    @property
    def key(self) -> Field:
        """The key."""
        return self.fields[0]

    @property
    def primary_key(self) -> str:
        """The columns of the primary key, as SQL."""
        return ", ".join(self.columns[: self.key_columns])

    def child_of(self, relation: str) -> str:
        """Return the relation of the child's rows beside `relation`, as SQL."""
        assert self.child is not None
        return relation.replace(f'"{self.table}"', f'"{self.child.table}"') if '"' in relation else f"{relation}_child"

    @property
    def columns(self) -> list[str]:
        """The columns' names, quoted, in order."""
        return [f'"{field.column}"' for field in self.fields]

    def create(self, table: str, *, keyed: bool = True) -> str:
        """SQL that creates a plain table of these columns, as somebody without Dynaurora would have it."""
        columns = [f'"{field.column}" {field.type}' for field in self.fields]
        if keyed:
            columns.append(f"PRIMARY KEY ({self.primary_key})")
        return f"CREATE TABLE {table} ({', '.join(columns)})"

    def checksum(self, relation: str) -> str:
        """SQL that sums up a relation's content, whatever its order: equal content, equal sums.

        Numbers by value (1.50 is 1.5), everything else by its text; scalar and nested columns each have a sum.
        """
        scalars = [f for f in self.fields if f.tag not in {"L", "M", "SS"}]
        nested = [f for f in self.fields if f.tag in {"L", "M", "SS"}]

        def total(fields: list[Field]) -> str:
            values = [f'trim_scale("{f.column}")' if f.type == "numeric" else f'"{f.column}"' for f in fields]
            return f"sum(hashtextextended(row({', '.join(values)})::text, 0)::numeric)::text" if values else "'0'"

        return f"SELECT count(*)::text, {total(scalars)}, {total(nested)} FROM {relation}"

    @property
    def mapping(self) -> str:
        """The mapping file."""
        defaults = dict(self.defaults)
        lines = [
            f"name: {self.name.replace('-', '_')}",
            f"source: {{table: {self.table}, key: {{{self.key.attribute}: {self.key.tag}}}}}",
            "targets:",
            f"  {self.table}:",
            f"    primary_key: [{self.key.column}]",
            "    columns:",
        ]
        for field in self.fields:
            rest = f", default: {defaults[field.column]}" if field.column in defaults else ""
            rest += ", on_error: null" if field.nul_is_null else ""
            lines.append(f'      {field.column}: {{attribute: {field.attribute}, type: "{field.type}"{rest}}}')
        lines.append(f"    unmapped: {self.unmapped or 'ignore'}")
        if self.history:
            lines.append(f"    history: {{keep: {self.history}}}")
        if self.indexes:
            lines.append("    indexes:")
            lines += [f"      - {{columns: [{', '.join(columns)}]}}" for columns in self.indexes]
        if self.child:
            place = self.child.fields[1]
            lines += [f"  {self.child.table}:", f"    parent: {self.table}", f"    explode: {self.child.explode}"]
            lines += [f"    element: {{{place.column}: {place.type}}}", "    columns:"]
            lines += [
                f'      {f.column}: {{attribute: {f.attribute}, type: "{f.type}"}}' for f in self.child.fields[2:]
            ]
        return "\n".join(lines) + "\n"


NARROW = Shape(
    "narrow",
    "Employees",
    (
        Field("Id", "N", "Id", "bigint"),
        Field("empName", "S", "Name", "varchar(20)"),
        Field("empDepartment", "S", "Department", "varchar(10)"),
    ),
    (("Name", "NA"), ("Department", "NA")),
    "attributes",
)

NARROW_3_INDEXES = replace(
    NARROW,
    name="narrow-3-indexes",
    indexes=(("Name",), ("Department",), ("Department", "Name")),
    items_of="narrow",
)

NARROW_INDEX = replace(NARROW_3_INDEXES, name="narrow-index", indexes=(("Name",),))

WIDE = Shape(
    "wide",
    "Orders",
    (
        Field("pk", "S", "pk", "text"),
        Field("email", "S", "email", "text"),
        Field("name", "S", "name", "varchar(200)"),
        Field("status", "S", "status", "varchar(20)"),
        Field("city", "S", "city", "text"),
        Field("created", "S", "created", "text"),
        Field("descr", "S", "descr", "text", nul_is_null=True),
        Field("ref", "S", "ref", "text"),
        Field("qty", "N", "qty", "bigint"),
        Field("price", "N", "price", "numeric"),
        Field("big38", "N", "big38", "numeric"),
        Field("sci", "N", "sci", "numeric"),
        Field("ver", "N", "ver", "bigint"),
        Field("active", "BOOL", "active", "boolean"),
        Field("vip", "BOOL", "vip", "boolean"),
        Field("blob", "B", "blob", "bytea"),
        Field("tags", "SS", "tags", "text[]", nul_is_null=True),
        Field("lines", "L", "lines", "jsonb"),
        Field("profile", "M", "profile", "jsonb", nul_is_null=True),
        Field("opt", "S", "opt", "text"),
    ),
)

VARIED = replace(WIDE, name="varied")
"""The same, with lists and maps that have another form in every item."""

STAFF = Shape(
    "staff",
    "Employees",
    (
        Field("Id", "N", "Id", "bigint"),
        Field("empName", "S", "Name", "varchar(100)"),
        Field("empDepartment", "S", "Department", "text"),
        Field("salary", "N", "salary", "numeric"),
        Field("active", "BOOL", "active", "boolean"),
        Field("attrs", "M", "attrs", "jsonb"),
    ),
)
"""Applied in addition to the seed's three columns: six, with a number of many digits, a boolean and a map."""

CHILDREN = Shape(
    "children",
    "Orders",
    (
        Field("id", "N", "id", "bigint"),
        Field("customer", "S", "customer", "varchar(40)"),
        Field("placed", "S", "placed", "timestamptz"),
        Field("total", "N", "total", "numeric"),
    ),
    child=Shape(
        "children-lines",
        "OrderLines",
        (
            Field("id", "N", "id", "bigint"),
            Field("", "N", "line", "integer"),
            Field("sku", "S", "sku", "text"),
            Field("quantity", "N", "quantity", "integer"),
            Field("price", "N", "price", "numeric"),
        ),
        key_columns=2,
        explode="lines",
    ),
)
"""Orders, each with a list of four lines, which are rows of a table of their own."""

EMBEDDINGS = Shape(
    "embeddings",
    "Documents",
    (Field("id", "N", "id", "bigint"), Field("embedding", "L", "embedding", "double precision[]")),
)
"""Lists of 1,536 numbers."""

STAFF_HISTORY = replace(STAFF, name="staff-history", items_of="staff", history="400d")
"""The same, every version kept."""

LOADED = {shape.name: shape for shape in (NARROW, NARROW_3_INDEXES, WIDE, VARIED, CHILDREN, EMBEDDINGS)}
SHAPES = {**LOADED, **{shape.name: shape for shape in (NARROW_INDEX, STAFF, STAFF_HISTORY)}}
