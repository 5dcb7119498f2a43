"""The memory estimate of a dry run, against what autograd really keeps."""

from __future__ import annotations

import pytest
import torch

from hfadapt import MultiTaskModel
from hfadapt.recipes.plan import estimate_memory
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_tasks

FACTOR = 2.0


def kept_for_backward(model, rows, tokens):
    """Bytes of the tensors that one training step keeps, parameters left out, each storage once."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            found[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address is used twice
        return tensor

    ids = torch.randint(5, 90, (rows, tokens))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = model(
            input_ids=ids, attention_mask=torch.ones_like(ids), task_ids="topic", labels=torch.zeros(rows)
        ).loss
    assert loss.requires_grad
    return sum(size for size, _ in found.values())


@pytest.mark.parametrize("train_base", [False, True], ids=["frozen base", "trained base"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("rows", "tokens"), [(8, 32), (2, 64)])
def test_activations_are_right_within_a_factor_of_two(train_base, attention, rows, tokens):
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
    base = tiny_model("bert", **size, attn_implementation=attention)
    model = MultiTaskModel.from_base(base, toy_tasks(), "low_rank", train_base=train_base).train()
    estimated = estimate_memory(model, rows, tokens).activations
    kept = kept_for_backward(model, rows, tokens)
    assert kept / FACTOR <= estimated <= kept * FACTOR, f"estimated {estimated}, kept {kept}"


def test_weights_gradients_and_optimizer_are_exact():
    model = MultiTaskModel.from_base(tiny_model("bert"), toy_tasks(), "low_rank")
    memory = estimate_memory(model, 2, 8)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for p in trained:
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moments = [t for state in optimizer.state.values() for t in state.values() if t.dim()]
    size = lambda tensors: sum(t.numel() * t.element_size() for t in tensors)  # noqa: E731
    assert memory.weights == size(model.parameters())
    assert memory.gradients == size(trained)
    assert memory.optimizer == size(moments)
