"""What ``import hfadapt`` and ``hfadapt --help`` import: modules, as no clock says the same twice."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import click
import pytest

from hfadapt.errors.distributions import may_have_entry_points, release_of

ROOT = Path(__file__).resolve().parents[2]
PATHS = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins")]
#: Each takes longer to import than all of hfadapt that is needed at the start.
SLOW = {
    *("dataclasses", "difflib", "email", "importlib.metadata", "importlib.resources", "inspect", "logging", "pathlib"),
    *("pkgutil", "socket", "urllib", "zipfile"),
    *("datasets", "numpy", "pluggy", "rich", "torch", "transformers", "typing_extensions", "yaml"),
}


def imported(first: str, then: str, *paths: str) -> set[str]:
    """The modules that ``then`` imports once ``first`` has run, in a Python that has imported nothing else (``-S``)."""
    code = f"import sys; sys.path[:0] = {[*paths, *PATHS]!r}; {first}; before = set(sys.modules)\n"
    code += f"try:\n    {then}\nexcept SystemExit: pass\n"
    code += "import json; print(); print(json.dumps(sorted(set(sys.modules) - before)))"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_import_hfadapt_imports_little() -> None:
    found = imported("pass", "import hfadapt")
    assert not found & {*SLOW, "click"}
    assert len({name for name in found if name.startswith("hfadapt")}) <= 10
    assert len(found) <= 60


def test_help_imports_click_and_little_else() -> None:
    site = str(Path(click.__file__).parents[1])
    then = "sys.argv = ['hfadapt', '--help']; from hfadapt.cli import main; main()"
    found = imported("import click", then, site)
    assert "hfadapt.cli.group" in found
    assert not found & SLOW
    assert len({name for name in found if name.startswith("hfadapt")}) <= 12
    assert len(found) <= 35


def add_distribution(place: Path, name: str, release: str, entry_points: str = "") -> None:
    folder = place / f"{name}-{release}.dist-info"
    folder.mkdir(parents=True)
    folder.joinpath("METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n")
    folder.joinpath("entry_points.txt").write_text(entry_points)


def test_the_release_of_a_package_is_that_of_importlib_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("torch", "transformers", "pluggy"):
        assert release_of(package) == importlib.metadata.version(package)
    assert release_of("no_such_package") is None
    add_distribution(tmp_path, "transformers", "99.0.0.dev0")
    add_distribution(tmp_path, "transformers_stream_generator", "1.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert release_of("transformers") == importlib.metadata.version("transformers") == "99.0.0.dev0"


def test_a_plugin_that_is_installed_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path / "empty"), str(tmp_path / "site")])
    monkeypatch.setattr(sys, "meta_path", [finder for finder in sys.meta_path if isinstance(finder, type)])
    add_distribution(tmp_path / "site", "other", "1.0", "[console_scripts]\nhfadapt = a:b\n")
    assert not may_have_entry_points("hfadapt")
    add_distribution(tmp_path / "site", "hfadapt_mine", "1.0", "[console_scripts]\na = b:c\n\n[hfadapt]\nmine = a\n")
    assert may_have_entry_points("hfadapt")


@pytest.mark.parametrize("where", ["archive", "finder"])
def test_where_distributions_have_no_folder_importlib_metadata_is_asked(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        def find_distributions(self, context: object) -> list[object]:
            return []

    archive = tmp_path / "packages.zip"
    zipfile.ZipFile(archive, "w").close()
    monkeypatch.setattr(sys, "path", [str(archive)] if where == "archive" else [])
    monkeypatch.setattr(sys, "meta_path", [Finder()] if where == "finder" else [])
    assert may_have_entry_points("hfadapt")
