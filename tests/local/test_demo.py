"""The demo itself, with fewer items: it proves equality, ends cleanly when interrupted, and reports what is wrong."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lambda_replicator import package
from pipeline.local.playground import emulator_python_version

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("zip") / "lambda_replicator.zip"
    package.build(path, python_version=emulator_python_version())
    return path


@pytest.fixture
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    folder.chmod(0o711)
    return folder / "run"


def start(archive: Path, run_dir: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pipeline.local.demo", "--archive", str(archive), "--run-dir", str(run_dir)]
    command += ["--result", str(run_dir.parent / "demo.json"), *options]
    return subprocess.Popen(
        command, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def processes_of(run_dir: Path) -> list[str]:
    """Command lines of the processes that were started for this run directory."""
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            environment = (path / "environ").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(run_dir) in command + environment and int(path.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.timeout(180)
def test_the_demo_proves_that_source_and_view_are_equal(archive: Path, run_dir: Path) -> None:
    demo = start(archive, run_dir, "--items", "400", "--write-seconds", "5")
    printed, _ = demo.communicate(timeout=170)
    assert demo.returncode == 0, printed
    summary = json.loads((run_dir.parent / "demo.json").read_text())
    assert summary["equal"]
    assert summary["items"] == summary["rows"] > 0
    assert summary["items_loaded"] >= 300
    assert summary["drift_by_kind"] == {"missing": 1, "extra": 1, "different": 1}
    assert summary["repaired"] == 3
    assert summary["stream_records"] == 400 + summary["writes_during_load"] + 1
    assert summary["changes_applied"] <= summary["stream_records"]
    assert summary["lag_seconds"]["samples"] > 10
    assert "equal: every item has its row" in printed
    assert processes_of(run_dir) == []


@pytest.mark.parametrize("seconds", [1.5, 5.0, 14.0])
def test_ctrl_c_at_any_moment_leaves_nothing_behind(archive: Path, run_dir: Path, seconds: float) -> None:
    demo = start(archive, run_dir, "--items", "400", "--write-seconds", "60")
    time.sleep(seconds)
    os.killpg(demo.pid, signal.SIGINT)
    printed, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, printed
    assert "interrupted" in printed
    until = time.monotonic() + 10
    while processes_of(run_dir) and time.monotonic() < until:
        time.sleep(0.1)
    assert processes_of(run_dir) == []


def test_a_taken_port_is_named_in_one_line(archive: Path, run_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        demo = start(archive, run_dir, "--postgres-port", str(port))
        printed, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    (line,) = [line for line in printed.splitlines() if line.startswith("demo:")]
    assert str(port) in line
    assert "Traceback" not in printed


def test_a_python_that_is_too_old_is_named_in_one_line(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.8.1"\nexit 1\n')
    old.chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["/usr/bin/env", "make", "-s", "python-ok", f"PYTHON={old}"],
        check=False, cwd=PROJECT, capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stdout
    assert "Python 3.8.1" in done.stdout
