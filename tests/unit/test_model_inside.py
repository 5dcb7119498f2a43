"""What runs a model that stands inside, a pipeline or a SentenceTransformer: each function says where the model is."""

from __future__ import annotations

import contextlib
import inspect

import pytest
import torch
from transformers import TextClassificationPipeline

import hfadapt
from hfadapt.errors import HFAdaptError
from hfadapt.errors.inside import where_the_model_is
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks
from tests.unit.test_argument_kinds import FUNCTIONS, NEEDED, arguments

PLACES = {"pipeline": "pipeline.model", "encoder": "model[0].model", "part": "model.model"}


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """By kind: an object that runs a model, whose model has adapters."""
    library = pytest.importorskip("sentence_transformers")
    folder, tokenizer = str(tmp_path_factory.mktemp("model")), tiny_tokenizer()
    tiny_model("bert").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    encoder = library.SentenceTransformer(folder, device="cpu")
    pipeline = TextClassificationPipeline(model=tiny_model("bert", "sequence-classification"), tokenizer=tokenizer)
    found = {"pipeline": pipeline, "encoder": encoder, "part": encoder[0]}
    for thing in (pipeline, encoder):
        hfadapt.attach(inside(thing), "lora", names=("a", "b"), verify=False)
    return found


def inside(thing):
    found = {"model": thing, "pipeline": thing}
    return eval(where_the_model_is(thing), found)


#: What else these are given is looked at before the model.
OTHERS_FIRST = {"load_peft", "load_unify", "task_optimizer"}
TAKE_A_MODEL = [name for name in FUNCTIONS if "model" in arguments(getattr(hfadapt, name)) and name not in OTHERS_FIRST]


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("name", TAKE_A_MODEL)
def test_every_function_says_where_the_model_is(name, kind, things, tmp_path):
    function, thing = getattr(hfadapt, name), things[kind]
    needed = {**NEEDED, "format": "peft", "args": None, "folder": str(tmp_path), "directory": str(tmp_path)}
    given = {
        one: needed.get(one, "a") if default is inspect.Parameter.empty else default
        for one, default in arguments(function).items()
    }
    with pytest.raises(HFAdaptError) as caught:
        made = function(**{**given, "model": thing})
        if isinstance(made, contextlib.AbstractContextManager):
            with made:
                pass
    error = caught.value
    assert error.try_.startswith(PLACES[kind])
    assert all((error.what, error.where, error.got, error.allowed))


def test_the_model_inside_is_what_runs(things):
    encoder, pipeline = things["encoder"], things["pipeline"]
    for run, model in ((lambda: encoder.encode("w1 w2", convert_to_tensor=True), inside(encoder)),
                       (lambda: torch.tensor(pipeline("w1 w2")[0]["score"]), inside(pipeline))):  # fmt: skip
        hfadapt.activate(model, "a")
        before = run()
        with torch.no_grad():
            for parameter in hfadapt.parameters_of(model, "a").values():
                parameter.add_(0.3)
        assert not torch.equal(run(), before)


def test_a_multi_task_model_on_one_is_refused(things):
    with pytest.raises(HFAdaptError, match="adapters sit on the model inside"):
        hfadapt.MultiTaskModel.from_base(things["encoder"], toy_tasks())


@pytest.mark.parametrize("other", [torch.nn.Sequential(torch.nn.Linear(2, 2)), torch.nn.Sequential(), None, "a", 3])
def test_others_run_no_model(other):
    assert where_the_model_is(other) == ""
