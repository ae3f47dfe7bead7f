"""Builds the Lambda's zip: `python -m lambda_replicator.package` (what `make lambda` runs).

Invariant: the zip contains what importing the handler loads, and nothing else: our own modules as a clean interpreter
loaded them, the locked dependencies without the parts that no import reaches, and the mappings. The same inputs give
the same bytes. One zip serves one Python minor version, because its database driver is compiled for that version.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections import Counter
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
ARCHIVE = PROJECT / "build" / "lambda_replicator.zip"
LIMIT_BYTES = 15_000_000
# The template's default runtime. Lambda runs x86_64 on Amazon Linux 2023 (glibc 2.34).
PYTHON_VERSION = "3.13"
PLATFORM = "x86_64-manylinux2014"
# These are already in every Lambda runtime.
_PROVIDED = frozenset({"boto3", "botocore", "s3transfer", "dateutil", "six", "urllib3"})
# 1980-01-01 is the zip format's zero.
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)

_LIST_LOADED = """
import json, sys
import lambda_replicator.handler
print(json.dumps(sorted(sys.modules)))
"""


def build(
    archive: Path = ARCHIVE, *, python_version: str = PYTHON_VERSION, tables: Path = PROJECT / "tables"
) -> dict[str, int]:
    """Write the zip and return the compressed bytes of each part. Fails above 15 MB."""
    loaded = loaded_modules()
    with tempfile.TemporaryDirectory() as folder:
        libraries = Path(folder)
        _install(libraries, python_version)
        files = own_files(loaded) | library_files(libraries, loaded) | _mappings(tables)
        archive.parent.mkdir(parents=True, exist_ok=True)
        unfinished = archive.with_suffix(".partial")
        _write(unfinished, files)
    size_bytes = unfinished.stat().st_size
    if size_bytes > LIMIT_BYTES:
        unfinished.unlink()
        raise SystemExit(f"building {archive.name}: {size_bytes} bytes, the limit is {LIMIT_BYTES}")
    unfinished.replace(archive)
    return shares(archive)


def loaded_modules() -> frozenset[str]:
    """Return every module that a clean interpreter has loaded once the handler is imported."""
    done = subprocess.run([sys.executable, "-c", _LIST_LOADED], cwd=PROJECT, check=True, capture_output=True, text=True)
    return frozenset(json.loads(done.stdout))


def own_files(loaded: frozenset[str]) -> dict[str, Path]:
    """Return our own loaded modules, by their path in the zip."""
    files: dict[str, Path] = {}
    for module in loaded:
        if module.partition(".")[0] not in {"pipeline", "lambda_replicator"}:
            continue
        stem = PROJECT / module.replace(".", "/")
        path = stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")
        files[path.relative_to(PROJECT).as_posix()] = path
    return files


def library_files(libraries: Path, loaded: frozenset[str]) -> dict[str, Path]:
    """Return the files to keep of the installed dependencies, by their path in the zip."""
    packages = {name.partition(".")[0] for name in loaded} - _PROVIDED
    files: dict[str, Path] = {}
    for path in libraries.rglob("*"):
        relative = path.relative_to(libraries)
        if path.is_file() and _kept(relative, packages, loaded):
            files[relative.as_posix()] = path
    return files


def _kept(relative: Path, packages: set[str], loaded: frozenset[str]) -> bool:
    top = relative.parts[0]
    if top.endswith(".dist-info"):
        # Vulnerability scanners need names and versions; licences must accompany the code.
        return relative.name == "METADATA" or "licenses" in relative.parts
    if top.endswith(".libs"):
        return top.removesuffix(".libs") in packages
    if top.removesuffix(".py") not in packages or "__pycache__" in relative.parts:
        return False
    if relative.suffix in {".pyi", ".pyx", ".pxd", ".c"} or relative.name == "py.typed":
        return False
    # Powertools is many tools in one; most of it (event handlers, parsers …) is never imported.
    return top != "aws_lambda_powertools" or _reached(relative, loaded)


def _reached(relative: Path, loaded: frozenset[str]) -> bool:
    depth = 3 if relative.parts[1] == "utilities" else 2
    feature = ".".join(relative.parts[:depth]).removesuffix(".py").removesuffix(".__init__")
    return feature in loaded


def _install(target: Path, python_version: str) -> None:
    """Install the locked requirements as wheels for Lambda, whatever this machine is."""
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        raise SystemExit("building the Lambda's zip: uv is not installed here; run `make setup` first")
    command = [uv, "pip", "install", "--quiet", "--target", str(target), "--python", sys.executable]
    command += ["--python-platform", PLATFORM, "--python-version", python_version, "--only-binary", ":all:"]
    command += ["--require-hashes", "--no-compile-bytecode", "-r", "requirements/lambda.txt"]
    done = subprocess.run(command, cwd=PROJECT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"installing the Lambda's dependencies for Python {python_version}:\n{done.stderr}")


def _mappings(tables: Path) -> dict[str, Path]:
    return {f"tables/{path.name}": path for path in tables.glob("*.y*ml")}


def _write(archive: Path, files: dict[str, Path]) -> None:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as zipped:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _TIMESTAMP)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.create_system = 3  # Unix; without it the permissions below mean nothing
            entry.external_attr = 0o100644 << 16
            zipped.writestr(entry, files[name].read_bytes())


def shares(archive: Path) -> dict[str, int]:
    """Return compressed bytes by top-level folder, largest first; a wheel's libraries count as its package."""
    sizes: Counter[str] = Counter()
    with zipfile.ZipFile(archive) as zipped:
        for entry in zipped.infolist():
            top = entry.filename.partition("/")[0]
            part = "licences and metadata" if top.endswith(".dist-info") else top.removesuffix(".libs")
            sizes[part] += entry.compress_size
    return dict(sizes.most_common())


def main() -> None:
    """Run the command line: which Python to build for, and where to put the zip."""
    parser = argparse.ArgumentParser(description="build the zip of the replicator Lambda")
    parser.add_argument("--python", default=PYTHON_VERSION, help="minor version the function will run on")
    parser.add_argument("--output", type=Path, default=ARCHIVE)
    parser.add_argument("--tables", type=Path, default=PROJECT / "tables", help="folder of mappings")
    arguments = parser.parse_args()
    if not re.fullmatch(r"3\.\d+", arguments.python):
        parser.error(f"--python takes a minor version such as {PYTHON_VERSION}, got {arguments.python}")
    sizes = build(arguments.output, python_version=arguments.python, tables=arguments.tables)
    print(f"{arguments.output}: {arguments.output.stat().st_size / 1e6:.2f} MB for Python {arguments.python}")
    for part, size_bytes in sizes.items():
        print(f"  {size_bytes / 1e3:8.0f} kB  {part}")


if __name__ == "__main__":
    main()
