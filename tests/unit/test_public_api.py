"""The names that ``import hfadapt`` offers: all of them load, and a type checker sees the same ones."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import peft
import pytest

import hfadapt
from hfadapt.errors import ConfigError, TaskError
from hfadapt.method import expand
from hfadapt_plugins import names

SOURCE = Path(hfadapt.__file__)
PLUGINS = "hfadapt_plugins."


def names_for_type_checkers() -> dict[str, str]:
    """Name to module of every import under ``if TYPE_CHECKING``."""
    found = {}
    for node in ast.parse(SOURCE.read_text("utf-8")).body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            for line in node.body:
                assert isinstance(line, ast.ImportFrom)
                if line.module == "hfadapt_plugins.names":
                    continue
                found.update({alias.asname or alias.name: line.module for alias in line.names})
    return found


@pytest.mark.parametrize("name", hfadapt.__all__)
def test_every_public_name_loads(name):
    assert getattr(hfadapt, name) is not None


def test_all_lists_exactly_the_lazy_names_once():
    assert sorted(hfadapt.__all__) == sorted({"__version__", *hfadapt._NAMES})


def test_type_checkers_see_what_is_loaded():
    assert names_for_type_checkers() == hfadapt._NAMES


def test_type_checkers_see_what_our_plugins_register():
    brought = {name: getattr(hfadapt, name) for name in hfadapt._plugin_names()}
    ours = {name: found for name, found in brought.items() if found.__module__.startswith(PLUGINS)}
    assert {name: getattr(names, name) for name in names.__all__} == ours


def test_completion_offers_the_names_of_plugins():
    assert {*hfadapt.__all__, "LoRA", "RDrop", "Annealed", "Houlsby", "save_peft"} <= set(dir(hfadapt))


@pytest.mark.parametrize("name", sorted(set(hfadapt._NAMES.values())))
def test_modules_list_the_public_names_taken_from_them(name):
    module = importlib.import_module(f"hfadapt.{name}")
    public = {key for key, home in hfadapt._NAMES.items() if home == name}
    assert public <= set(module.__all__)


@pytest.mark.parametrize("module", ["hfadapt", "hfadapt.cli", "hfadapt.multitask.auto"])
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


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: hfadapt.PAL(siz=4), ConfigError, "unknown field 'siz'.*Did you mean 'size'"),
        (lambda: expand({"method": "houlsby", "reduction": 2}), ConfigError, "Bottleneck: unknown field 'reduction'"),
        (lambda: hfadapt.Classification(num_label=3), TaskError, "Did you mean 'num_labels'"),
        (lambda: hfadapt.Task("a", metric="f1"), TaskError, "Did you mean 'metrics'"),
        (lambda: hfadapt.Anealed, AttributeError, "Did you mean 'Annealed'"),
        (lambda: expand(hfadapt.LoRA), ConfigError, r"a class or function.*try: LoRA\(\)"),
        (lambda: expand(peft.LoraConfig()), ConfigError, r"got: LoraConfig;.*hfadapt.LoRA.*hfadapt.load_peft"),
        (lambda: expand(3), ConfigError, "got: 3"),
    ],
)
def test_a_slip_names_what_was_meant(call, error, says):
    with pytest.raises(error, match=says):
        call()
