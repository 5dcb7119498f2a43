"""One engine of several tasks, what it answers to each text alone, and a client of a server on it."""

from __future__ import annotations

import json

import pytest
import torch

import hfadapt
from hfadapt import Classification, Engine, Task
from hfadapt.inference.predict import to_dict
from hfadapt.inference.serving import Admin, Limits
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import saved
from tests.unit.serving.case import TASKS, TEXTS, TOKEN, serving


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with two folders of adapters, and their base beside it."""
    place = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    tiny_model("bert").save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    saved(place / "base", place / "root/many", TASKS, hfadapt.LoRA(r=4), 1)
    saved(place / "base", place / "root/more", [Task("more", Classification(3))], "par_bn", 2)
    return place / "root"


@pytest.fixture(scope="module")
def engine(root):
    return Engine.from_pretrained(root / "many", max_characters=2000)


@pytest.fixture(scope="module")
def alone(engine):
    """The answer to each text when nothing else is asked."""
    found = [to_dict(engine.predict([text], [task], [pair])[0]) for text, task, pair in TEXTS]
    return [json.loads(json.dumps({k: v for k, v in one.items() if not k.startswith("text")})) for one in found]


@pytest.fixture(scope="module")
def client(engine, root):
    limits = Limits(wait_ms=20, request_texts=8, body_bytes=50_000, body_seconds=1)
    with serving(engine, limits, Admin(root, TOKEN)) as found:
        yield found
