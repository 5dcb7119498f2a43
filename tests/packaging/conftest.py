"""Builds that the packaging tests share: they need seconds of compiler time each, so they are made once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the files a checkout holds, so that builds leave nothing in the working tree."""
    target = tmp_path_factory.mktemp("source")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run_python(*arguments: str, cwd: Path, python: str = sys.executable, **environment: str) -> str:
    """Run an interpreter and return what it prints; fail with both streams."""
    done = subprocess.run(
        [python, *arguments],
        cwd=cwd,
        env={**os.environ, "HFADAPT_BUILD_CPP": "0", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def run():
    """``run_python`` as a fixture."""
    return run_python
