"""What an optimizer does to a task without rows: the published training's trajectories, and ours."""

from __future__ import annotations

import pytest
import torch
from golden_files import DATA, close, tensors_of
from torch import Tensor
from transformers import TrainerControl, TrainerState, TrainingArguments

import hfadapt
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.training import IdleTaskGuard

GOLDEN = tensors_of(DATA / "pals_training" / "bertadam_trajectory.safetensors")
WITH_ROWS = (1, 4, 7, 10)


class BertAdam:
    """Adam without bias correction; each tensor is clipped to norm 1, and counts its own steps."""

    def __init__(self, decay: float) -> None:
        self.decay, self.step = decay, 0
        self.first = self.second = 0.0

    def __call__(self, parameter: Tensor, gradient: Tensor | None) -> Tensor:
        if gradient is None:
            return parameter
        gradient = gradient / max(1.0, float(gradient.norm()) + 1e-6)
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        done = self.step / 12
        self.step += 1
        rate = 1e-2 * (done / 0.25 if done < 0.25 else 1 - done)
        return parameter - rate * (self.first / (self.second.sqrt() + 1e-6) + self.decay * parameter)


def trajectory(name: str, idle: str) -> Tensor:
    parameter, adam, seen = GOLDEN[f"init.{name}"], BertAdam(0.0 if name == "b" else 0.01), []
    for step, gradient in enumerate(GOLDEN[f"grad.{name}"]):
        without = name == "A" and step not in WITH_ROWS
        nothing = None if idle == "none" or step == 0 else torch.zeros_like(gradient)  # before the first there is none
        given = nothing if without else gradient
        parameter = adam(parameter, given)
        seen.append(parameter)
    return torch.stack(seen)


@pytest.mark.parametrize("idle", ["zero", "none"])
def test_the_published_optimizer_moves_idle_tasks_only_where_their_gradient_is_zeros(idle: str) -> None:
    for name in ("A", "W", "b"):
        close(trajectory(name, idle), GOLDEN[f"traj_{idle}.{name}"], f"{idle} {name}")
    moved = GOLDEN[f"traj_{idle}.A"].diff(dim=0).abs().sum(1) > 0
    late = [step for step in range(2, 12) if step not in WITH_ROWS]
    assert all(bool(moved[step - 1]) == (idle == "zero") for step in late)


@pytest.mark.parametrize("everyone", [False, True], ids=["eager", "all-take-part"])
def test_idle_tasks_stand_still_under_momentum_and_decay(everyone: bool, tmp_path) -> None:
    """Without rows a task has no gradient, or where all must have one, none that reaches the optimizer."""
    model, inputs = tiny_model("bert"), tiny_inputs("bert")
    hfadapt.attach(model, hfadapt.LowRank(4, init="normal"), names=["busy", "idle"], seed=0)
    mine = hfadapt.parameters_of(model, "idle")
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    args = TrainingArguments(str(tmp_path), report_to=[], torch_compile=everyone, use_cpu=True)
    for rows in (["busy", "idle", "idle"], ["busy"] * 3, ["busy"] * 3):
        before = {key: parameter.detach().clone() for key, parameter in mine.items()}
        optimizer.zero_grad()
        model(**inputs, task_ids=rows)[0].square().mean().backward()
        if everyone and "idle" not in rows:
            for parameter in mine.values():
                parameter.grad = torch.zeros_like(parameter)
        IdleTaskGuard().on_pre_optimizer_step(args, TrainerState(), TrainerControl(), model=model)
        optimizer.step()
        still = [torch.equal(parameter, before[key]) for key, parameter in mine.items()]
        assert all(still) if "idle" not in rows else not any(still)
