"""The wheels of a release, as ``make wheels`` builds them: for Linux with the kernels, and for every other machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from hfadapt_kernels import native

LIBRARY = Path(native.__file__).with_name("_C.abi3.so")
pytestmark = [
    pytest.mark.packaging,
    pytest.mark.skipif(not native.available(), reason=str(native.why_not())),
    pytest.mark.skipif(platform.machine() != "x86_64" or sys.platform != "linux", reason="the wheel is one for x86-64"),
    pytest.mark.skipif(importlib.util.find_spec("auditwheel") is None, reason="needs auditwheel"),
]


def build(source: Path, out: Path, compiler: str) -> subprocess.CompletedProcess[str]:
    """Build the wheels with a compiler that only fetches the library: the real one was at work when it was built."""
    script = out.with_name("c++")
    script.write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\n{compiler}\n')
    script.chmod(0o755)
    command = [source / "tools" / "wheels.sh", sys.executable, out]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CXX": str(script)})


def test_one_wheel_is_for_every_linux_from_glibc_2_28_on_and_one_for_every_machine(
    source_tree: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(source_tree, tmp_path / "source")
    done = build(source, tmp_path / "out", f'case "$2" in *.so) cp {LIBRARY} "$2";; *) : > "$2";; esac')
    assert done.returncode == 0, done.stdout + done.stderr
    linux, plain = sorted((tmp_path / "out").glob("*.whl"))
    assert linux.name.endswith("-cp310-abi3-manylinux_2_28_x86_64.whl")
    assert plain.name.endswith("-py3-none-any.whl")
    # nothing is packed along, and the library is the one that was built, byte for byte
    assert packed(linux) - packed(plain) == {"hfadapt_kernels/_C.abi3.so"} and packed(plain) <= packed(linux)
    assert zipfile.ZipFile(linux).read("hfadapt_kernels/_C.abi3.so") == LIBRARY.read_bytes()


def packed(wheel: Path) -> set[str]:
    """The files of a wheel beside those that describe it."""
    names = zipfile.ZipFile(wheel).namelist()
    return {name for name in names if ".dist-info/" not in name and not name.endswith("/")}
