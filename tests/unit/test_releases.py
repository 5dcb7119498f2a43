"""Which releases of other packages the tests know, and what is said of newer ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import hfadapt
from hfadapt.cli.doctor import doctor
from hfadapt.errors import releases

ROOT = Path(hfadapt.__file__).parents[1]


def minor(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")[:2]))


def test_the_record_holds_the_packages_that_the_project_stands_on_within_what_it_allows():
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from oldest import oldest
    finally:
        sys.path.pop(0)
    wanted = {"torch", "transformers", "accelerate", "datasets", "peft", "pluggy"}
    assert set(releases.tested()) == wanted <= set(oldest())
    assert all(minor(releases.tested()[name]) >= minor(oldest()[name] + ".0") for name in wanted)


MAJOR, MINOR = minor(releases.tested()["transformers"])


@pytest.mark.parametrize(
    ("here", "says"),
    [
        (f"{MAJOR}.{MINOR}.9", False),
        (f"{MAJOR}.{MINOR + 1}.0", True),
        (f"{MAJOR}.{MINOR + 1}.0.dev0", True),
        (f"{MAJOR + 1}.0.0", True),
        (f"{MAJOR}.0.0", False),
    ],
)
def test_a_newer_minor_release_is_said_once_by_import_without_torch(here, says, tmp_path):
    folder = tmp_path / f"transformers-{here}.dist-info"
    folder.mkdir()
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: transformers\nVersion: {here}\n")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]; import hfadapt"
    code += "; assert not {'torch', 'transformers'} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert len(done.stderr.splitlines()) == says
    assert (f"transformers {here} is newer" in done.stderr) == says


def test_doctor_shows_what_was_tested_and_warns_of_what_is_newer(monkeypatch):
    monkeypatch.setattr(releases, "tested", lambda: {"transformers": "5.1.0", "peft": "99.0.0"})
    out = CliRunner().invoke(doctor, []).output
    assert "tests last passed on" in out and "99.0.0" in out
    assert "is newer than 5.1.0" in out and "is newer than 99.0.0" not in out
    found = json.loads(CliRunner().invoke(doctor, ["--json"]).stdout)
    assert found["newer than tested"] == ["transformers"] and found["tested"]["peft"] == "99.0.0"


def test_the_record_is_rewritten_with_what_is_installed(tmp_path, monkeypatch):
    # a copy of what the script needs, so that the record of this checkout stays as it is
    needed = [*(ROOT / "hfadapt" / "errors").glob("*.py"), ROOT / "tools" / "tested_releases.py"]
    needed += [ROOT / "hfadapt" / "adapters" / name for name in ("__init__.py", "atomic.py")]
    for path in needed:
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text("utf-8"))
    (tmp_path / "hfadapt" / "__init__.py").touch()
    record = tmp_path / "hfadapt" / "errors" / "tested_releases.json"
    record.write_text('{"transformers": "1.0", "pluggy": "1.0"}')
    tools = tmp_path / "tools"
    subprocess.run([sys.executable, str(tools / "tested_releases.py")], check=True, capture_output=True)
    found = json.loads(record.read_text())
    assert found == {name: releases.installed(name) for name in ("transformers", "pluggy")}
