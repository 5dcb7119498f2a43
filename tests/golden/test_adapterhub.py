"""Bottleneck adapters equal AdapterHub's in float64: alone, dropped and in parallel."""

from __future__ import annotations

import re

import golden_adapterhub as hub
import pytest
import torch
from safetensors.torch import load_file
from transformers import BertModel

import hfadapt

FILES = hub.available()
TOLERANCE = {"t5": 1e-5}  # its norm computes in float32


def runs() -> list[tuple[str, str]]:
    found = []
    for file in FILES:
        tags = hub.read(file).tags
        found += [(file, tag) for tag in tags if not tag.startswith("fuse")]
    return found


def expected(golden: hub.Golden, tag: str) -> dict[str, list[torch.Tensor]]:
    wanted = {"hidden": golden.hidden(tag)}
    if golden.arch == "t5":
        wanted["dec_hidden"] = golden.hidden(tag, "dec_hidden")
    return wanted


def run(model: torch.nn.Module, golden: hub.Golden, tag: str) -> dict[str, tuple[torch.Tensor, ...]]:
    match = re.fullmatch(r"(\w+?)(?:\.drop(\d+))?", tag)
    assert match
    who, drop = match[1], int(match[2] or 0)
    choice = {"base": None, "parallel": hfadapt.Parallel(*hub.NAMES)}.get(who, who)
    # AdapterHub numbers the layers of an encoder first, so its skipped layers are the encoder's only.
    hfadapt.set_adapter_drop(model, {"encoder": drop} if drop else None)
    with hfadapt.active(model, choice), torch.no_grad():
        out = model(**golden.inputs, output_hidden_states=True)
    hfadapt.set_adapter_drop(model, None)
    if golden.arch == "t5":
        return {"hidden": out.encoder_hidden_states, "dec_hidden": out.decoder_hidden_states}
    return {"hidden": out.hidden_states}


@pytest.mark.parametrize(("file", "tag"), runs(), ids=lambda v: v)
def test_hidden_states(file: str, tag: str) -> None:
    golden = hub.read(file)
    model = hub.adapted(golden)
    found = run(model, golden, tag)
    for part, wanted in expected(golden, tag).items():
        for layer, (got, want) in enumerate(zip(found[part], wanted, strict=True)):
            if tag == "parallel" and layer == 0 and part == "hidden":
                # What transformers records first is the input of layer 0, where our batch has grown already.
                want = want.repeat(len(hub.NAMES), 1, 1)
            assert got.shape == want.shape, f"{part} {layer}"
            error = (got - want).abs().max().item()
            assert error <= TOLERANCE.get(golden.arch, 1e-9) * max(1, want.abs().max().item()), f"{part} {layer}"


@pytest.mark.parametrize("file", [f for f in FILES if "par_bn" in f])
def test_parallel_composition_of_parallel_adapters(file: str) -> None:
    """AdapterHub raises here, because it does not replicate the sub-layer's output (trap 35)."""
    golden = hub.read(file)
    model = hub.adapted(golden)
    together = run(model, golden, "parallel")
    alone = [run(model, golden, name) for name in hub.NAMES]
    for part, states in together.items():
        want = torch.cat([one[part][-1] for one in alone])
        torch.testing.assert_close(states[-1], want, rtol=0, atol=1e-9 if golden.arch != "t5" else 1e-5)


@pytest.mark.parametrize("case", ["seq_bn_inv", "seq_bn_ln_before_after", "adapterdrop_leave_out", "stack3"])
@torch.no_grad()
def test_folders_that_the_library_saved(case: str) -> None:
    """Float32 outputs of AdapterHub, from the weights it wrote."""
    folder = hub.DATA / "saved"
    model = BertModel.from_pretrained(folder / "base").eval()
    names = ["a", "b", "c"] if case == "stack3" else ["x"]
    for name in names:
        hub.attach_saved(model, folder / case / name, name, model.config.num_hidden_layers)
    hfadapt.activate(model, hfadapt.Stack(*names) if len(names) > 1 else "x")
    got = model(**load_file(str(folder / "inputs.safetensors"))).last_hidden_state
    want = load_file(str(folder / case / "expected.safetensors"))["last_hidden_state"]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-5)
