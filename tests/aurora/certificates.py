"""A certificate authority for tests, and certificates for servers, made with openssl."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


class Authority:
    """A self-signed root; clients get its certificate as their bundle."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "root.crt"
        self._key = folder / "root.key"
        _openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=authority",
                 "-keyout", self._key, "-out", self.certificate)  # fmt: skip

    def server_settings(self, data_dir: Path, host: str) -> dict[str, str]:
        """Sign a certificate for a host name, put it into a server's data directory, and return the settings."""
        key, request, certificate = data_dir / "server.key", self._folder / "server.csr", data_dir / "server.crt"
        _openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={host}", "-keyout", key, "-out", request)
        names = self._folder / "names"
        names.write_text(f"subjectAltName=DNS:{host}\n")
        _openssl("x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", "2",
                 "-extfile", names, "-out", certificate)  # fmt: skip
        owner = data_dir.stat()
        for path in (key, certificate):
            path.chmod(0o600)
            shutil.chown(path, owner.st_uid, owner.st_gid)
        return {"ssl": "on"}


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True)  # noqa: S607 - the machine's own
