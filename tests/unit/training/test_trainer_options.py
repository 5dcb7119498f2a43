"""Options of Trainer and wrappers of torch that would lose the tasks: they work, or are refused at the start."""

from __future__ import annotations

import logging

import pytest
import torch
from safetensors.torch import load_file

import hfadapt
from hfadapt.data import MixingStrategy
from hfadapt.errors import ConfigError
from hfadapt.testing.tiny import tiny_model


class OnlyFirst(MixingStrategy):
    """Never draws any task but the first."""

    def probabilities(self, sizes, epoch, epochs):
        return [1.0] + [0.0] * (len(sizes) - 1)


@pytest.mark.parametrize(
    "options", [{"eval_do_concat_batches": False}, {"label_names": ["task_ids"]}], ids=["pieces", "no labels"]
)
def test_evaluations_that_could_not_be_scored_are_refused_at_the_start(make_trainer, options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        make_trainer(**options)


def test_task_ids_may_stand_among_the_label_names(make_trainer):
    want = {k: v for k, v in make_trainer().evaluate().items() if "topic" in k or "macro" in k}
    for names in (["labels", "task_ids"], ["task_ids", "labels"]):
        found = make_trainer(label_names=names).evaluate()
        assert {key: found[key] for key in want} == want


def test_a_task_that_was_never_drawn_is_reported_as_untrained(make_trainer, caplog):
    trainer = make_trainer(mixture={"strategy": OnlyFirst()}, max_steps=2)
    with caplog.at_level(logging.WARNING, "hfadapt"):
        trainer.train()
    assert "never drawn in 2 steps, so untrained: score, same" in caplog.text


def test_what_torch_compile_returned_stands_for_the_model_inside(tmp_path):
    model = tiny_model("bert").eval()
    handle = hfadapt.attach(model, "lora", names=("a", "b"))
    compiled = torch.compile(model, backend="eager")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.5)
    ids = torch.arange(1, 7)[None]
    want = {name: model(input_ids=ids, task_ids=[name])[0] for name in "ab"}
    assert not torch.equal(want["a"], want["b"])
    hfadapt.activate(compiled, "b")
    torch.testing.assert_close(model(input_ids=ids)[0], want["b"])
    with hfadapt.active(compiled, "a"):
        torch.testing.assert_close(model(input_ids=ids)[0], want["a"])
    hfadapt.save(compiled, tmp_path / "compiled")
    hfadapt.save(model, tmp_path / "plain")
    read = [load_file(tmp_path / folder / "adapter_model.safetensors") for folder in ("compiled", "plain")]
    assert read[0].keys() == read[1].keys() and all(torch.equal(read[0][key], read[1][key]) for key in read[0])
    hfadapt.detach(compiled)
    assert "detached" in repr(handle) and not hasattr(model, "hfadapt_shared")


def test_a_handle_says_what_is_left_of_it():
    model = tiny_model("bert")
    first, second = (hfadapt.attach(model, "lora", name) for name in ("a", "b"))
    assert "parameters" in repr(first)
    first.detach()
    assert repr(first) == "Handle(a: detached)" and "parameters" in repr(second)


@pytest.mark.parametrize("keep_original", [True, False])
def test_a_compiled_model_is_merged_and_recompiles(keep_original):
    model = tiny_model("bert", num_hidden_layers=1).eval()  # a trace takes its time for each layer
    hfadapt.attach(model, "lora", "a")
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    compiled = torch.compile(model, backend="eager")
    ids = torch.arange(1, 7)[None]
    with torch.no_grad():
        want = compiled(input_ids=ids)[0]
        merged = hfadapt.merge(compiled, keep_original=keep_original)
        assert merged.model is model
        torch.testing.assert_close(model(input_ids=ids)[0], want)
        torch.testing.assert_close(compiled(input_ids=ids)[0], want)
        if keep_original:
            merged.unmerge()
            torch.testing.assert_close(compiled(input_ids=ids)[0], want)
            with hfadapt.active(compiled, None):
                assert not torch.allclose(compiled(input_ids=ids)[0], want)
