"""The names that ``import hfadapt`` offers: all of them load, and a type checker sees the same ones."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import hfadapt

SOURCE = Path(hfadapt.__file__)


def names_for_type_checkers() -> dict[str, str]:
    """Name to module of every import under ``if TYPE_CHECKING``."""
    found = {}
    for node in ast.parse(SOURCE.read_text("utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                found.update({alias.asname or alias.name: line.module for alias in line.names})
    return found


@pytest.mark.parametrize("name", hfadapt.__all__)
def test_every_public_name_loads(name):
    assert getattr(hfadapt, name) is not None


def test_all_lists_exactly_the_lazy_names_once():
    assert sorted(hfadapt.__all__) == sorted({"__version__", *hfadapt._NAMES})


def test_type_checkers_see_what_is_loaded():
    assert names_for_type_checkers() == hfadapt._NAMES


@pytest.mark.parametrize("name", sorted(set(hfadapt._NAMES.values())))
def test_modules_list_the_public_names_taken_from_them(name):
    module = importlib.import_module(f"hfadapt.{name}")
    public = {key for key, home in hfadapt._NAMES.items() if home == name}
    assert public <= set(module.__all__)


@pytest.mark.parametrize("module", ["hfadapt", "hfadapt.cli", "hfadapt.auto"])
def test_imports_load_no_torch(module):
    heavy = ("torch", "transformers", "datasets", "peft")
    code = f"import {module}; print(sorted(m for m in {heavy!r} if m in sys.modules))"
    roots = [str(SOURCE.parents[1] / part) for part in (".", "kernels", "plugins")]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {roots!r}; {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"
