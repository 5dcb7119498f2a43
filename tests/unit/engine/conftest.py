"""One base, folders of adapters on it, an engine, and what it answers to each request alone."""

from __future__ import annotations

import copy

import pytest
import torch

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import REQUESTS, TASKS, saved


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "base"
    torch.manual_seed(0)
    tiny_model("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(base_folder):
    return saved(base_folder, base_folder.parent / "many", TASKS, hfadapt.LoRA(r=4))


@pytest.fixture(scope="module")
def further(base_folder):
    """A task of another method in a folder of its own."""
    return saved(base_folder, base_folder.parent / "more", [Task("more", Classification(3))], "par_bn", 2)


@pytest.fixture(scope="module")
def new(base_folder):
    """A task of LoRA in a folder of its own."""
    return saved(base_folder, base_folder.parent / "new", [Task("new", Classification(3))], hfadapt.LoRA(r=2), 5)


@pytest.fixture(scope="module")
def model(folder):
    return MultiTaskModel.from_pretrained(folder)


@pytest.fixture
def engine(model):
    """An engine of its own for each test, which may change it."""
    return Engine(copy.deepcopy(model), tiny_tokenizer())


@pytest.fixture(scope="module")
def alone(model):
    """The answer of each request when nothing else is asked, from an engine that never runs two rows at once."""
    engine = Engine(copy.deepcopy(model), tiny_tokenizer())
    return [engine.predict([t], [name], [pair])[0] for t, name, pair in REQUESTS]
