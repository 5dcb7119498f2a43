"""Inside attention that is a block, the linears that make its queries, keys and values are known by what they reach."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.architecture import resolve
from hfadapt.testing.conformance import randomize
from hfadapt.testing.every_type import tiny_of_type
from hfadapt.testing.type_checks import stock_inputs


@pytest.mark.parametrize(
    ("model_type", "query", "value"),
    [
        ("bitnet", "q_proj", "v_proj"),  # a norm before the output projection
        ("deepseek_v3", "q_b_proj", "kv_b_proj"),  # low-rank pairs
        ("gemma4_text", "q_proj", "v_proj"),  # a norm of the values
        ("mlcd_vision_model", "q_proj", "v_proj"),  # time before the batch inside
        ("parakeet_encoder", "q_proj", "v_proj"),  # a layer of more parts than two
    ],
)
def test_a_role_of_a_block_is_what_alone_reaches_the_function_that_attends(model_type: str, query: str, value: str):
    arch = resolve(tiny_of_type(model_type))
    for layer in arch.layers():
        assert layer.attention.is_block
        found = {role: path.rpartition(".")[2] for role, path, _ in layer.attention.inside}
        assert (found["query"], found["value"]) == (query, value)


def test_values_of_a_linear_that_makes_keys_too_are_updated_alone():
    """DeepSeek's ``kv_b_proj``: in each head, keys without positions, then values."""
    model = tiny_of_type("deepseek_v3")
    inputs, attention = stock_inputs(model), model.layers[0].self_attn
    arch = resolve(model)
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("value",)), names=["a"])
    randomize(model)
    seen = []
    attention.kv_b_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        model(**inputs, task_ids="__base__")
        model(**inputs, task_ids="a")
    blocks, start, stop = next(part for role, _, part in arch.layer("decoder", 0).attention.inside if role == "value")
    heads = [one.unflatten(-1, (blocks, -1)) for one in seen]
    assert (start, stop) == (heads[0].shape[-1] - attention.v_head_dim, heads[0].shape[-1])
    keys, values = zip(*((one[..., :start], one[..., start:]) for one in heads), strict=True)
    assert torch.equal(*keys)
    assert not torch.equal(*values)


def test_a_role_that_no_linear_of_a_model_has_is_refused_with_the_roles_that_are_there():
    with pytest.raises(hfadapt.errors.AttachError, match=r"'query'.*roles output, self_output.*in_proj, x_proj"):
        hfadapt.attach(tiny_of_type("mamba"), hfadapt.LoRA())
