"""An argument of another kind than a public function, method or class takes is refused by an error of ours."""

from __future__ import annotations

import contextlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import HFAdaptError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks


class Called(Exception):
    """A function that was given was called, where functions are taken."""


def called(*_):
    raise Called


KINDS = {
    "None": None,
    "an empty string": "",
    "bytes": b"a",
    "true": True,
    "a number": 1.5,
    "NaN": float("nan"),
    "a huge number": 10**30,
    "an object": object(),
    "names and none": ["a", 3],
    "a list in a list": [[1]],
    "a dict of numbers": {1: 2},
    "a scalar": torch.tensor(float("nan")),
    "a vector": torch.ones(3),
    "a function": called,
    "a type": Called,
}
#: What else a call needs, by the name of the argument.
NEEDED = {"name": "new", "method": "lora", "weights": {"a": 0.5, "b": 0.5}, "adapter": "a", "r": 2, "choice": "a"}
#: Those for authors of methods take objects that only hfadapt makes.
FOR_AUTHORS = {"annotations", "hookimpl", "importlib", "select_layers", "parameters_of"}


def arguments(call, skip=()):
    parameters = inspect.signature(call).parameters.values()
    named = [one for one in parameters if one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL)]
    return {one.name: one.default for one in named if one.name not in skip}


def raw_errors(call, good, fresh):
    """What is not an error of ours, for each argument in turn and each kind of it that is wrong."""
    found, subject = [], fresh()
    for name in good:
        for kind, value in KINDS.items():
            try:
                made = call(subject, **{**good, name: value})
                if isinstance(made, contextlib.AbstractContextManager) and not isinstance(made, Path):
                    with made:
                        pass
            except HFAdaptError:
                continue
            except Called:
                pass
            except Exception as error:
                found.append(f"{name}, {kind}: {type(error).__name__}: {error}")
            subject = fresh()
    return found


def adapted():
    model = tiny_model("bert", "sequence-classification", seed=0)
    hfadapt.attach(model, "lora", names=("a", "b"), verify=False)
    return model


FUNCTIONS = [
    name
    for name in dir(hfadapt)
    if inspect.isfunction(getattr(hfadapt, name)) and name[0].islower() and name not in FOR_AUTHORS
]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    function = getattr(hfadapt, name)
    given = arguments(function)
    first = next(iter(given))
    good = {
        one: NEEDED.get(one, "a") if default is inspect.Parameter.empty else default for one, default in given.items()
    }
    with_model = first in ("model", "trainer")
    if with_model:
        del good[first]
    assert not raw_errors(lambda subject, /, **values: function(*[subject] * with_model, **values), good, adapted)
    if with_model:
        assert not raw_errors(lambda _, model: function(model, **good), {"model": None}, lambda: None)


METHODS = {
    "use": {"task": "topic", "choice": "topic"},
    "remove_task": {"name": "topic"},
    "add_task": {"folder": "nothing", "name": None, "task": None, "format": None},
    "save_pretrained": {"save_directory": "out", "state_dict": None},
    "forward": {"input_ids": torch.full((2, 3), 5), "task_ids": [0, 1], "labels": None, "inputs_embeds": None},
}


@pytest.mark.parametrize("name", METHODS)
def test_methods_of_a_multi_task_model(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = METHODS[name]
    found = raw_errors(
        lambda model, **values: getattr(model, name)(**values), good, lambda: toy_model(toy_tasks(), method="lora")
    )
    assert not found


def test_writing_with_a_multi_task_model():
    def fresh():
        tasks = [hfadapt.Task(name, hfadapt.OwnHead()) for name in ("topic", "score")]
        return hfadapt.MultiTaskModel.from_base(tiny_model("gpt2", "causal-lm"), tasks, "lora")

    good = {"inputs": torch.full((2, 3), 5), "generation_config": None, "task_ids": ["topic", "score"]}
    found = raw_errors(lambda model, **values: model.generate(**values, max_new_tokens=1), good, fresh)
    assert not found


def test_making_a_multi_task_model():
    made = hfadapt.MultiTaskModel.from_base
    good = {"tasks": toy_tasks(), "method": "lora", "train_base": False, "autocast_adapter_dtype": True}
    assert not raw_errors(lambda base, **values: made(base, **values), good, lambda: tiny_model("bert", seed=0))
    assert not raw_errors(lambda _, base: made(base, toy_tasks()), {"base": None}, lambda: None)
    place = {"pretrained_model_name_or_path": "nothing"}
    kinds = {name: value for name, value in KINDS.items() if not isinstance(value, str)}
    for value in kinds.values():
        with pytest.raises(HFAdaptError):
            hfadapt.MultiTaskModel.from_pretrained(**{**place, "pretrained_model_name_or_path": value})


CONFIGS = {
    f"method {name}": one.config_class for name, one in plugins.methods().items() if isinstance(one, hfadapt.Method)
}
CONFIGS |= {f"regularizer {name}": one for name, one in plugins.regularizers().items()}
CONFIGS |= {f"head {name}": one for name, one in plugins.heads().items()}
CONFIGS |= {
    one.__name__: one for one in (hfadapt.Task, hfadapt.TaskEarlyStopping, hfadapt.EpochSync, hfadapt.RobustAdapterDrop)
}
FIELDS = {"name": "x", "mixture": None, "num_labels": 3}


@pytest.mark.parametrize("name", CONFIGS)
def test_configs(name):
    made = CONFIGS[name]
    given = arguments(made)
    good = {
        one: FIELDS.get(one, 2) if default is inspect.Parameter.empty else default for one, default in given.items()
    }
    assert not raw_errors(lambda _, **values: made(**values), good, lambda: None)


@pytest.mark.parametrize("value", ["no", 0, 1, None, [], 1.0])
@pytest.mark.parametrize(
    ("made", "field"),
    [
        (hfadapt.LoRA, "use_rslora"),
        (hfadapt.Bottleneck, "is_parallel"),
        (hfadapt.Bottleneck, "share"),
        (hfadapt.PAL, "lhuc"),
        (hfadapt.TopFFN, "residual"),
    ],
)
def test_a_switch_is_not_read_by_its_truth(made, field, value):
    with pytest.raises(HFAdaptError, match=rf"bad {field}.*got: .*allowed: .*True"):
        made(**{field: value})
    for switch in (True, False):
        made(**{field: switch})


@pytest.mark.parametrize("switch", ["freeze_base", "train_head", "verify", "autocast_adapter_dtype"])
def test_a_switch_of_attach_is_not_read_by_its_truth(switch):
    options: Any = {switch: "false"}
    with pytest.raises(HFAdaptError, match=f"bad {switch}"):
        hfadapt.attach(tiny_model("bert", seed=0), "lora", **options)


def test_a_mistyped_size_ends_at_once():
    with pytest.raises(HFAdaptError, match="num_heads=1"):
        hfadapt.PAL(size=10**30 + 57, num_heads=12)


def test_names_may_come_as_any_collection():
    import numpy as np

    names: Any = np.array(["neg", "pos"])
    assert hfadapt.Task("x", label_names=names).label_names == ("neg", "pos")
