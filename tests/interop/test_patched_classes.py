"""Models that transformers builds of other classes: ``register_patch_mapping`` and fusions by ``kernel_config``."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import hfadapt
from hfadapt.errors import ArchitectureError, AttachError, CheckpointError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

patching = pytest.importorskip("transformers.monkey_patching", reason="this release of transformers patches no classes")
hub_kernels = pytest.importorskip(
    "transformers.integrations.hub_kernels", reason="this release of transformers has no kernels"
)
fuse = getattr(hub_kernels, "make_parent_class_for_kernel_fusion", None)
if fuse is None:
    pytest.skip("this release of transformers fuses no modules", allow_module_level=True)

from transformers.models.llama import modeling_llama as stock_code  # noqa: E402  # behind what may skip

INPUTS = tiny_inputs("llama", batch=2)


class OneProjection(nn.Module):
    """An MLP whose first two linears are one."""

    def __init__(self, config):
        super().__init__()
        self.gate_up_proj = nn.Linear(config.hidden_size, 2 * config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


class NormAndMLP(nn.Module):
    """What a fused kernel's layout is: it stands at the norm, holds the MLP, and calls neither."""

    def __init__(self, norm, mlp):
        super().__init__()
        self.norm, self.mlp = norm, mlp

    def forward(self, x):
        x = self.norm.weight * F.rms_norm(x, x.shape[-1:], eps=self.norm.variance_epsilon)
        gate, up = F.linear(x, self.mlp.gate_proj.weight), F.linear(x, self.mlp.up_proj.weight)
        return F.linear(F.silu(gate) * up, self.mlp.down_proj.weight)


def base(**classes):
    config = tiny_model("llama").config
    patching.register_patch_mapping(classes, overwrite=True)
    try:
        with patching.apply_patches():
            torch.manual_seed(0)
            return stock_code.LlamaModel(config).double().eval()
    finally:
        patching.clear_patch_mapping()


def merged_projections():
    """A stock model, and one of the same function whose MLPs have one linear less."""
    stock, other = base(), base(LlamaMLP=OneProjection)
    weights = stock.state_dict()
    for path in [key.removesuffix("gate_proj.weight") for key in weights if key.endswith("gate_proj.weight")]:
        gate, up = weights.pop(f"{path}gate_proj.weight"), weights.pop(f"{path}up_proj.weight")
        weights[f"{path}gate_up_proj.weight"] = torch.cat([gate, up])
    other.load_state_dict(weights)
    return stock, other


def fused():
    parts = ["post_attention_layernorm", "mlp"]
    return base(LlamaDecoderLayer=fuse(stock_code.LlamaDecoderLayer, parts, NormAndMLP))


@pytest.mark.parametrize(
    "method",
    [
        hfadapt.LoRA(r=4, target_modules=["q_proj", "down_proj"]),
        "lora",
        "bottleneck",
        "parallel",
        "prefix",
        hfadapt.PAL(size=12, dropout=0.0),
        "lhuc",
    ],
    ids=lambda method: method if isinstance(method, str) else type(method).__name__,
)
def test_a_class_of_the_same_function_gets_the_numbers_of_the_stock_one(method, tmp_path):
    made, given = [], {}
    for number, model in enumerate(merged_projections()):
        for name in ("a", "b"):
            hfadapt.attach(model, method, name, seed=1)
        randomize(model)
        own = {key: p for name in ("a", "b") for key, p in hfadapt.parameters_of(model, name).items()}
        given = given or {key: p.detach().clone() for key, p in own.items()}
        assert own.keys() == given.keys()
        with torch.no_grad():  # places may come in another order, and initial numbers with them
            for key, parameter in own.items():
                parameter.copy_(given[key])
        made.append(model(**INPUTS, task_ids=["a", "b"])[0])
        hfadapt.save(model, tmp_path / str(number))
        hfadapt.detach(model)
    torch.testing.assert_close(made[1], made[0], rtol=1e-5, atol=1e-6)
    again = hfadapt.load(tmp_path / "1", model=merged_projections()[0])  # sits at modules that both have
    torch.testing.assert_close(again(**INPUTS, task_ids=["a", "b"])[0], made[0], rtol=1e-5, atol=1e-6)


def test_an_adapter_of_a_merged_linear_names_what_the_stock_model_lacks(tmp_path):
    stock, other = merged_projections()
    hfadapt.attach(other, hfadapt.LoRA(r=4, target_modules=["gate_up_proj"]))
    hfadapt.save(other, tmp_path)
    with pytest.raises((AttachError, CheckpointError), match="gate_up_proj"):
        hfadapt.load(tmp_path, model=stock)


def test_a_linear_inside_a_fused_kernel_is_refused():
    """The kernel holds the MLP, which is never called: only its weights show that they are used."""
    with pytest.raises(AttachError, match=r"never run.*mlp\.down_proj.*which transformers made of several modules"):
        hfadapt.attach(fused(), hfadapt.LoRA(r=4, target_modules=["down_proj"]))
    model = fused()
    hfadapt.attach(model, hfadapt.LoRA(r=4, target_modules=["q_proj"]))
    assert hfadapt.verify(model) == 2


def test_a_feed_forward_part_that_is_hidden_in_a_fused_class_is_not_taken_for_another():
    with pytest.raises((ArchitectureError, AttachError), match="no chosen layer has a feed-forward part"):
        hfadapt.attach(fused(), "bottleneck")


@pytest.mark.parametrize("method", ["prefix", "lora"])
def test_what_acts_on_attention_is_in_a_fused_model_what_it_is_in_the_stock_one(method):
    made = []
    for model in (base(), fused()):
        hfadapt.attach(model, method, seed=1)
        randomize(model)
        made.append((model(**INPUTS)[0], [key for key, p in model.named_parameters() if p.requires_grad]))
    assert made[0][1] == made[1][1]
    torch.testing.assert_close(made[1][0], made[0][0], rtol=1e-5, atol=1e-6)


class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(32, 32)

    def forward(self, x):
        return self.proj(x)


def test_a_part_that_a_call_leaves_out_is_no_fused_kernel(caplog):
    """Its weights are asked for their dtype, and nothing computes with them."""
    model = base()
    model.tower = Tower().double()
    model.register_forward_pre_hook(lambda module, args: (module.tower.proj.weight.dtype, None)[1])
    hfadapt.attach(model, hfadapt.LoRA(r=4, target_modules=["proj", "q_proj"]))
    assert any("tower.proj" in record.getMessage() for record in caplog.records)
