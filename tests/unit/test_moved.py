"""Names of modules that an earlier version had, and the places that pickles of adapted models hold."""

from __future__ import annotations

import importlib
import io
import pickle
import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import moved
from hfadapt.errors.moved import MOVED, PUBLIC, MovedModuleError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model

# Every class of ours in a pickle of an adapted model of this version: a file of today names them for good. A place that
# has to move keeps working through a line in `hfadapt.errors.moved.PUBLIC`.
PLACES = (Path(__file__).parents[1] / "fixtures" / "pickled_places.txt").read_text("utf-8").split()
RETIRED = sorted(name for name in MOVED if name.partition(".")[0] not in PUBLIC)
UNDER_ANOTHER_NAME = sorted({*MOVED, *PUBLIC} - {*RETIRED, "__main__"})


def places_in(pickled: bytes) -> set[str]:
    found = set()

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if module.partition(".")[0] in ("hfadapt", "hfadapt_plugins"):
                found.add(f"{module}.{name}")
            return super().find_class(module, name)

    Reader(io.BytesIO(pickled)).load()
    return found


@pytest.mark.parametrize("place", PLACES)
def test_a_class_stands_where_pickles_of_this_version_look_for_it(place):
    module, _, name = place.rpartition(".")
    assert callable(resolve_name(f"{module}:{name}"))


def test_pickles_hold_no_place_that_is_not_kept():
    found = places_in(pickle.dumps(toy_model(method="bottleneck")))
    for method in sorted(set(plugins.methods()) - {"fusion"}):
        model = tiny_model("bert", "sequence-classification")
        hfadapt.attach(model, method, names=["one", "other"])
        found |= places_in(pickle.dumps(model))
    assert found <= set(PLACES)


@pytest.mark.parametrize("name", RETIRED)
def test_a_module_that_moved_says_where_it_stands(name):
    with pytest.raises(MovedModuleError, match="hfadapt.load") as caught:
        importlib.import_module(f"hfadapt.{name}")
    top = name.partition(".")[0]
    assert caught.value.name in (f"hfadapt.{name}", f"hfadapt.{top}")
    assert importlib.import_module(f"hfadapt.{moved.where_now(name)}")


def test_what_names_an_old_place_says_what_to_do(tmp_path):
    file = tmp_path / "model.pt"
    torch.save(toy_model(), file)
    old = file.read_bytes()
    with pytest.raises(MovedModuleError, match=r"hfadapt\.runtime\.slot now.*hfadapt 0\.1.*hfadapt\.load"):
        pickle.loads(b"chfadapt.slots\nSlot\n.")
    assert b"hfadapt.slots" not in old


@pytest.mark.parametrize("name", UNDER_ANOTHER_NAME)
def test_a_documented_module_loads_under_both_names(name):
    home = PUBLIC.get(name) or moved.where_now(name)
    old, new = (importlib.import_module(f"hfadapt.{one}") for one in (name, home))
    assert old is new
    assert new.__spec__.name == f"hfadapt.{home}"


def test_a_class_is_the_same_one_under_both_names():
    assert importlib.import_module("hfadapt.heads.sequence").Classification is hfadapt.Classification


def test_attributes_that_never_were_are_no_modules():
    assert not hasattr(hfadapt, "slots")
    with pytest.raises(ModuleNotFoundError, match="nothing"):
        importlib.import_module("hfadapt.nothing")


def test_the_package_runs_as_a_program():
    done = subprocess.run([sys.executable, "-m", "hfadapt", "--version"], capture_output=True, text=True, check=False)
    assert done.stdout.strip().endswith(hfadapt.__version__), done.stderr
