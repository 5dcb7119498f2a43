"""Tasks that share an update are trained by a plain Trainer, saved, resumed and served."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainerControl, TrainerState

import hfadapt
from hfadapt import MultiTaskModel
from hfadapt.errors import ConfigError
from hfadapt.runtime import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.training import IdleTaskGuard, last_checkpoint, task_optimizer

METHOD = {"method": "mtl_lora", "r": 2, "n_up": 2}


def state(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_a_plain_trainer_trains_every_task_and_a_resumed_run_ends_at_the_same_numbers(make_trainer, tmp_path) -> None:
    whole = make_trainer("whole", method=METHOD)
    before = state(whole.model)
    whole.train()
    after = state(whole.model)
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    names = [task.name for task in whole.model.tasks]
    assert all(any(f"adapters.{name}.mix" in key for key in moved) for name in names)
    assert sum("lora_b" in key for key in moved) == len(list(deltas_of(whole.model.base)))

    half = whole.state.max_steps // 2
    cut = make_trainer("cut", method=METHOD, save_strategy="steps", save_steps=half)
    cut.train()
    resumed = make_trainer("cut", method=METHOD, save_strategy="steps", save_steps=half)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / f"checkpoint-{half}"))
    found = state(resumed.model)
    assert found.keys() == after.keys()
    assert all(torch.equal(found[name], after[name]) for name in found)
    assert last_checkpoint(tmp_path / "cut") is not None


def test_a_multi_task_folder_comes_back_shared_and_hands_out_one_task(make_trainer, tmp_path) -> None:
    trainer = make_trainer(method=METHOD, max_steps=4)
    trainer.train()
    model = trainer.model.eval()
    model.save_pretrained(tmp_path / "out")
    again = MultiTaskModel.from_pretrained(tmp_path / "out", base=tiny_model("bert")).eval()
    first, second = (task.name for task in model.tasks[:2])
    delta = next(iter(deltas_of(again.base)))[1]
    assert delta.own(first).lora_b is delta.own(second).lora_b
    again.remove_task(first)
    inputs = tiny_inputs("bert", batch=2)
    with torch.no_grad():
        want = model(**inputs, task_ids=second).logits
        assert torch.equal(again(**inputs, task_ids=second).logits, want)
        again.add_task(tmp_path / "out", first)
        assert delta.own(first).lora_b is delta.own(second).lora_b
        assert torch.equal(again(**inputs, task_ids=second).logits, want)
        assert torch.equal(again(**inputs, task_ids=first).logits, model(**inputs, task_ids=first).logits)


def test_an_idle_task_does_not_move_where_all_have_gradients() -> None:
    """What it shares has gradients of the others, which say nothing of its own."""
    model = tiny_model("bert")
    hfadapt.attach(model, METHOD, names=["a", "b"], seed=0)
    randomize(model)
    model(**tiny_inputs("bert", batch=2), task_ids="a")[0].square().sum().backward()
    for parameter in hfadapt.parameters_of(model, "b").values():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    args = SimpleNamespace(torch_compile=True)
    IdleTaskGuard().on_pre_optimizer_step(args, TrainerState(), TrainerControl(), model=model)
    for _, delta in deltas_of(model):
        a, b = delta.own("a"), delta.own("b")
        assert b.mix.grad is None and b.matrix.grad is None
        assert a.mix.grad is not None and a.lora_a.grad is not None and a.lora_b.grad is not None


def test_tasks_that_share_cannot_have_two_learning_rates(make_trainer) -> None:
    trainer = make_trainer(method=METHOD)
    first = trainer.model.tasks[0].name
    with pytest.raises(ConfigError, match="share parameters"):
        task_optimizer(trainer.model, trainer.args, learning_rates={first: 1e-3})
