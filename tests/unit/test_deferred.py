"""What a plugin registers to be made later: made once, when it is asked for, and what is wrong with it is said then."""

import gc
import subprocess
import sys
from pathlib import Path

import pytest

import hfadapt
from hfadapt import plugins
from hfadapt.adapters.uncollected import uncollected
from hfadapt.errors import PluginError, RegistryError
from hfadapt.plugins import Deferred, Registry

REGISTRIES = (plugins.methods, plugins.regularizers, plugins.formats)


def number(name, thing):
    return "" if isinstance(thing, int) else "a number"


def test_a_deferred_thing_is_made_once_and_when_it_is_asked_for():
    made = []
    registry = Registry("number", number)
    registry.add("seven", Deferred(lambda: made.append(7) or 7, ("Seven",)), origin="here")
    assert "seven" in registry
    assert list(registry) == ["seven"]
    assert registry.origin("seven") == "here"
    assert registry.exports("seven", lambda thing: {"found": thing}) == ("Seven",)
    assert not made
    assert registry["seven"] == registry["seven"] == 7
    assert made == [7]
    assert registry.exports("seven", lambda thing: {"found": thing}) == ("found",)


def test_what_cannot_be_made_is_named_with_its_plugin():
    registry = Registry("number", number)
    registry.add("broken", Deferred(lambda: 1 // 0), origin="some plugin")
    with pytest.raises(PluginError, match="some plugin: the number 'broken' cannot be made; got: ZeroDivisionError"):
        registry["broken"]


def test_what_is_made_is_looked_at_as_anything_registered():
    registry = Registry("number", number)
    registry.add("word", Deferred(lambda: "seven"), origin="some plugin")
    with pytest.raises(RegistryError, match="some plugin: 'word' is no number; got: 'seven'; allowed: a number"):
        registry["word"]


def test_an_unknown_name_is_no_export():
    with pytest.raises(RegistryError, match="unknown number 'six'"):
        Registry("number", number).exports("six", dict)


@pytest.mark.parametrize("registry", REGISTRIES)
def test_the_names_that_are_told_beforehand_are_those_that_come(registry):
    plugins.reload()
    told = {entry: set(registry().exports(entry, hfadapt._exports_of)) for entry in registry()}
    assert told == {entry: set(hfadapt._exports_of(registry()[entry])) for entry in registry()}


def test_attaching_imports_one_method_and_what_opens_folders_waits():
    roots = [str(Path(hfadapt.__file__).parents[1] / part) for part in (".", "kernels", "plugins")]
    code = f"""
import sys
sys.path[:0] = {roots!r}
from transformers import BertConfig, BertModel
model = BertModel(BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8))
import hfadapt
hfadapt.attach(model, hfadapt.LoRA(r=2), "task")
kinds = {{name.split(".")[2] for name in sys.modules if name.startswith("hfadapt_plugins.methods.")}}
print(sorted(kinds), [name for name in ("load", "from_hub") if f"hfadapt.adapters.{{name}}" in sys.modules],
      [name for name in sys.modules if name.startswith(("hfadapt_plugins.regularizers.", "hfadapt.multitask.heads"))])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['lora', 'shared'] [] []"


@pytest.mark.parametrize("collects", [True, False])
def test_the_collector_is_left_as_it_was(collects):
    was = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        with pytest.raises(KeyError), uncollected():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is collects
    finally:
        (gc.enable if was else gc.disable)()
