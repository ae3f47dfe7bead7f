"""`dynaurora discover TABLE`: profiles a DynamoDB table and drafts its mapping file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from pipeline.commands.discover_place import Place, place_for
from pipeline.commands.session import Outcome
from pipeline.core.discover.key_kinds import with_captures
from pipeline.core.discover.mapping_draft import COLUMN_PRESENCE, column_line, draft, mapping_name
from pipeline.core.discover.observations import spell
from pipeline.core.discover.profile import propose, share
from pipeline.core.errors import ConfigurationError
from pipeline.core.mapping_files.mapping_file import read_mapping
from pipeline.core.types.sql_types import KEY_TYPES
from pipeline.settings import Settings

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

    from pipeline.commands.session import Session
    from pipeline.core.discover.mapping_draft import Discovered
    from pipeline.core.discover.profile import AttributeProfile
    from pipeline.jobs.discover import Sample

_ITEMS, _READ_CAPACITY = 20_000, 100.0


def add_arguments(parser: ArgumentParser) -> None:
    """Add this verb's arguments."""
    parser.add_argument("table", metavar="TABLE", help="the DynamoDB table's name")
    parser.add_argument("--items", type=int, default=_ITEMS, metavar="N", help=f"items to sample (default: {_ITEMS:,})")
    parser.add_argument(
        "--read-capacity",
        type=float,
        default=_READ_CAPACITY,
        metavar="UNITS",
        help=f"read capacity units a second that the scan may use (default: {_READ_CAPACITY:.0f})",
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--export-arn", metavar="ARN", help="sample this export instead, which uses no read capacity")
    source.add_argument("--manifest", metavar="LOCATION", help="sample the export whose manifest-summary.json is here")
    parser.add_argument(
        "--key", metavar="NAME:TYPE[,…]", help="the table's key, such as PK:S,SK:S (default: ask DynamoDB)"
    )
    parser.add_argument(
        "--min-presence",
        type=float,
        default=100 * COLUMN_PRESENCE,
        metavar="PERCENT",
        help="leave attributes that fewer of the items have in the jsonb column (default:"
        f" {100 * COLUMN_PRESENCE:.0f})",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="write to this file (default: NAME.yaml in the folder of mappings)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the file")


def run(session: Session, arguments: Namespace) -> Outcome:
    """Sample, profile, write the file."""
    settings = Settings.from_environment(session.environment, database=False)
    place = place_for(arguments.table, settings.tables_folder, arguments.output)
    path = place.path
    _check(arguments, path)
    sample = _sample(session, settings, arguments)
    if not sample.items:
        raise ConfigurationError(
            f"discovering {sample.table}: it has no items, so there is nothing to learn its attributes from",
            hint="write the mapping by hand (docs/mapping.md)",
        )
    from pipeline.jobs.discover import discover  # noqa: PLC0415 - pandas takes half a second to import

    found = discover(sample)
    text = draft(found, presence=arguments.min_presence / 100, schema=_schema(path), distinct=place.distinct)
    read_mapping(text, str(path))  # the file can be used, or nothing is written
    _write(path, text, force=arguments.force)
    return Outcome(_document(sample, found, path, text), _lines(sample, found, place))


def _check(arguments: Namespace, path: Path) -> None:
    if arguments.items < 1 or arguments.read_capacity <= 0:
        raise ConfigurationError("--items and --read-capacity must be above 0")
    if not 0 <= arguments.min_presence <= 100:
        raise ConfigurationError("--min-presence must be from 0 to 100")
    if path.exists() and not arguments.force:
        raise _exists(path)


def _exists(path: Path) -> ConfigurationError:
    return ConfigurationError(
        f"{path} exists", hint="write to another file with --output, or overwrite it with --force"
    )


def _sample(session: Session, settings: Settings, arguments: Namespace) -> Sample:
    # The AWS SDK and pandas take half a second each to import, which `--help` does not need.
    from pipeline.dynamodb.exports.exports import wait_for_export  # noqa: PLC0415
    from pipeline.jobs import discover  # noqa: PLC0415
    from pipeline.jobs.services import Services  # noqa: PLC0415

    services = Services(settings)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("items"))
    with Progress(*columns, console=session.progress, transient=True) as shown:
        task = shown.add_task(f"sampling {arguments.table}", total=arguments.items)

        def tell(done: int) -> None:
            shown.update(task, completed=done)

        location = arguments.manifest
        if arguments.export_arn:
            location = wait_for_export(services.dynamodb, arguments.export_arn)
        if location:
            key = _key(arguments.key) if arguments.key else None
            return discover.sample_of_export(
                services, arguments.table, location, items=arguments.items, key=key, on_progress=tell
            )
        return discover.sample_by_scan(
            services,
            arguments.table,
            items=arguments.items,
            read_capacity_per_second=arguments.read_capacity,
            on_progress=tell,
        )


def _key(text: str) -> dict[str, str]:
    key = {name: tag for name, _, tag in (part.rpartition(":") for part in text.split(","))}
    if not 1 <= len(key) <= 2 or "" in key or not set(key.values()) <= set(KEY_TYPES):
        raise ConfigurationError(f'--key "{text}" is not a key', hint="write it as PK:S or PK:S,SK:N")
    return key


def _schema(path: Path) -> str | None:
    schema = path.parent / "../docs/mapping.schema.json"
    return "../docs/mapping.schema.json" if schema.exists() else None


def _write(path: Path, text: str, *, force: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w" if force else "x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise _exists(path) from None
    except OSError as error:
        raise ConfigurationError(f"writing {path}: {(error.strerror or 'not possible').lower()}") from None


def _document(sample: Sample, found: Discovered, path: Path, text: str) -> dict[str, Any]:
    tags = {spell(name): tag for name, tag in sample.key.items()}
    return {
        "table": sample.table,
        "key": sample.key,
        "items": len(sample.items),
        "complete": sample.complete,
        "consumed_capacity": sample.consumed_capacity,
        "attributes": [
            asdict(profile)
            | {"present": profile.present, "proposal": asdict(propose(profile, key_tag=tags.get(profile.path)))}
            for profile in found.profiles
        ],
        "kinds": [{"patterns": with_captures(kind), "items": kind.items} for kind in found.kinds],
        "path": str(path),
        "mapping": text,
    }


def _lines(sample: Sample, found: Discovered, place: Place) -> list[str]:
    tags = {spell(name): tag for name, tag in sample.key.items()}
    rows = [("attribute", "items", "types", "size", "range", "column")]
    rows += [_row(profile, tags.get(profile.path)) for profile in found.profiles]
    widths = [min(48, max(len(row[column]) for row in rows)) for column in range(len(rows[0]))]
    lines = [f"{found.sample}, {sample.consumed_capacity:,.1f} read capacity units used"]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    total = len(sample.items)
    for kind in found.kinds:
        patterns = ", ".join(f"{name}: {pattern}" for name, pattern in with_captures(kind).items())
        lines.append(f"  {share(kind.items, total)} of the items are {patterns}")
    name = mapping_name(sample.table, distinct=place.distinct)
    lines += [f"  named {name}, because {place.because}"] if place.distinct else []
    return [*lines, f"wrote {place.path}; read it, then run `dynaurora plan {name}`"]


def _row(profile: AttributeProfile, key_tag: str | None) -> tuple[str, ...]:
    size = f"{profile.shortest:,}–{profile.longest:,}" if profile.longest else ""
    values = f"{profile.smallest} – {profile.largest}" if profile.smallest is not None else ""
    tags = " ".join(f"{tag} {share(count, profile.present)}" for tag, count in profile.tags.items())
    proposal = propose(profile, key_tag=key_tag)
    column = (proposal.type or "none") + (f" epoch {proposal.epoch}" if proposal.epoch else "")
    if column_line(profile, key_tag=key_tag) is None:
        column = "none: see the file"
    return (profile.path, share(profile.present, profile.items), tags, size, values, column)
