"""The container folders stay containers, and Hugging Face's own `kernels` package stays unharmed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins")])


@pytest.mark.parametrize("container", ["kernels", "plugins"])
def test_container_folders_are_no_packages(container: str) -> None:
    assert not (ROOT / container / "__init__.py").exists(), (
        f"{container}/__init__.py would make a top-level package named {container!r}: as 'kernels' it shadows "
        "Hugging Face's package and breaks the import of every transformers model"
    )


def test_the_tests_folder_is_no_package() -> None:
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_import_hfadapt_imports_no_torch_and_no_transformers() -> None:
    code = "import sys, hfadapt; print(*{'torch', 'transformers', 'datasets', 'click', 'rich'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": PATHS},
    )
    assert done.stdout.strip() == ""


def test_a_hugging_face_kernels_distribution_beside_ours_still_imports_models(tmp_path: Path) -> None:
    """A regular `kernels` package on the path wins over our folder, even when started in the repository's root."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text(
        "MARK = 'hugging face'\n"
        "def __getattr__(name):\n"
        "    if name.startswith('__'):\n"
        "        raise AttributeError(name)\n"
        # Every name is a class whose instances decorate by returning what they are given.
        "    body = {'__init__': lambda self, *a, **k: None, '__call__': lambda self, thing=None, *a, **k: thing}\n"
        "    return type(name, (), body)\n"
    )
    dist = tmp_path / "kernels-0.18.2.dist-info"
    dist.mkdir()
    (dist / "METADATA").write_text("Metadata-Version: 2.1\nName: kernels\nVersion: 0.18.2\n")
    (dist / "RECORD").write_text("kernels/__init__.py,,\n")
    code = (
        "import sys; sys.path.insert(0, '')\n"
        "import kernels; assert kernels.MARK == 'hugging face', kernels\n"
        "from transformers import BertConfig, BertModel\n"
        "import hfadapt, hfadapt_kernels, hfadapt_plugins\n"
        "BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))\n"
        "print(kernels.__file__)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), PATHS]), "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout


def test_the_readme_names_the_oldest_releases_that_the_metadata_allow() -> None:
    project, readme = ((ROOT / name).read_text("utf-8") for name in ("pyproject.toml", "README.md"))
    for package in ("torch", "transformers"):
        (oldest,) = re.findall(rf'"{package}>=([\d.]+)', project)
        assert f"{package} {oldest} or later" in readme


def test_the_source_distribution_holds_every_file_of_the_cpp_kernels() -> None:
    """A file that MANIFEST.in leaves out makes an install from source go on without the C++ library."""
    line = re.search(r"^recursive-include csrc (.*)$", (ROOT / "MANIFEST.in").read_text("utf-8"), re.M)
    assert line is not None
    suffixes = {pattern.removeprefix("*") for pattern in line[1].split()}
    files = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    assert files and {path.suffix for path in files} <= suffixes


PACKAGES = (ROOT / "hfadapt", ROOT / "plugins" / "hfadapt_plugins", ROOT / "kernels" / "hfadapt_kernels")


def test_the_first_folder_fits_one_screen() -> None:
    entries = {path.name for path in (ROOT / "hfadapt").iterdir()} - {"py.typed", "__pycache__"}
    assert len(entries) <= 15, f"a new room, or one idea too many at the top: {sorted(entries)}"


def test_files_hold_one_idea() -> None:
    lengths = {
        path: len(path.read_text("utf-8").splitlines()) for package in PACKAGES for path in package.rglob("*.py")
    }
    assert not [str(path.relative_to(ROOT)) for path, lines in lengths.items() if lines > 400]
    in_hfadapt = sorted(lines for path, lines in lengths.items() if path.is_relative_to(ROOT / "hfadapt"))
    assert in_hfadapt[len(in_hfadapt) // 2] < 130
