"""Folders that AdapterHub saved, in the compositions that it ran them in, give its outputs; in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from golden_adapterhub_runs import DATA
from golden_files import close
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertModel, PreTrainedModel

import hfadapt

SAVED = DATA / "saved"
TOLERANCE = 1e-5  # of float32
THREE = ("a", "b", "c")
# Rows of the file: the library's BatchSplit gave 1, 2 and 3 rows to the adapters.
SPLIT = ["a", "b", "b", "c", "c", "c"]
ALONE = sorted(p.name for p in SAVED.iterdir() if (p / "x").is_dir())
ONE_DROPPED = "adapterdrop_skip_layers"


def attach(model: PreTrainedModel, folder: Path, name: str) -> None:
    """Load what ``save_adapter`` wrote to ``folder``, as a user would."""
    kind = (
        "bin" if list(folder.glob("*.bin")) else "safetensors"
    )  # the library cannot write its prefix tuning otherwise
    assert hfadapt.load(folder, model, name=name, weights=kind) is model


def run(case: str, names: tuple[str, ...], choice: Any, **call: Any) -> dict[str, Tensor]:
    model = BertModel.from_pretrained(SAVED / "base").eval()
    for name in names:
        attach(model, SAVED / case / name, name)
    if choice is not None:
        if isinstance(choice, hfadapt.Fuse):
            hfadapt.load(SAVED / case / "fusion", model)
        hfadapt.activate(model, choice)
    hfadapt.set_adapter_drop(model, 1 if case == ONE_DROPPED else None)
    with torch.no_grad():
        out = model(**load_file(str(SAVED / "inputs.safetensors")), output_hidden_states=True, **call)
    found = {"last_hidden_state": out.last_hidden_state, "pooler_output": out.pooler_output}
    return found | {f"hidden_states.{i}": h for i, h in enumerate(out.hidden_states)}


def expected(case: str) -> dict[str, Tensor]:
    found = load_file(str(SAVED / case / "expected.safetensors"))
    return {k: v for k, v in found.items() if not k.startswith("fusion_attentions")}


def check(found: dict[str, Tensor], case: str) -> None:
    for key, want in expected(case).items():
        # What transformers records first is the input of layer 0, where a parallel batch has grown already.
        want = want.repeat(found[key].shape[0] // want.shape[0], *(1,) * (want.dim() - 1))
        close(found[key], want, f"{case} {key}", TOLERANCE)


@pytest.mark.parametrize("case", ALONE)
def test_one_adapter(case: str) -> None:
    check(run(case, ("x",), "x"), case)


@pytest.mark.parametrize(
    ("case", "choice"),
    [
        ("stack3", hfadapt.Stack(*THREE)),
        ("parallel3", hfadapt.Parallel(*THREE)),
        ("fusion3_static", hfadapt.Fuse(*THREE)),
    ],
)
def test_three_adapters(case: str, choice: Any) -> None:
    check(run(case, THREE, choice), case)


@pytest.mark.parametrize("case", ["batchsplit3", "lora_batchsplit3"])
def test_rows_of_one_batch(case: str) -> None:
    check(run(case, THREE, None, task_ids=SPLIT), case)


def test_fusion_weights_are_recorded_as_the_library_gives_them() -> None:
    case = "fusion3_static"
    want = {k: v for k, v in load_file(str(SAVED / case / "expected.safetensors")).items() if "fusion" in k}
    model = BertModel.from_pretrained(SAVED / "base").eval()
    for name in THREE:
        attach(model, SAVED / case / name, name)
    hfadapt.load(SAVED / case / "fusion", model)
    inputs = load_file(str(SAVED / "inputs.safetensors"))
    real = inputs["attention_mask"].bool()
    with hfadapt.record_fusion(model) as record, torch.no_grad():
        model(**inputs)
    assert len(record.means) == len(want)
    for (path, means), (key, weights) in zip(sorted(record.means.items()), sorted(want.items()), strict=True):
        assert path.split(".")[2] == key.split(".")[1]
        assert list(means.values()) == pytest.approx(weights[real].double().mean(0).tolist(), abs=1e-5)


def test_average_divides_once() -> None:
    """AdapterHub takes the mean of the weighted outputs: three weights that sum to 1 give a third of their average."""
    case, weights = "average3", (0.2, 0.3, 0.5)
    got = run(case, THREE, hfadapt.Average(*THREE, weights=weights))
    assert (got["last_hidden_state"] - expected(case)["last_hidden_state"]).abs().max() > 1

    model = BertModel.from_pretrained(SAVED / "base").eval()
    for name in THREE:
        attach(model, SAVED / case / name, name)
    hfadapt.activate(model, hfadapt.Average(*THREE, weights=weights))
    for layer in model.encoder.layer:

        def divide(norm: Any, args: tuple, layer: Any = layer) -> tuple:
            return ((args[0] - layer.residual) / len(THREE) + layer.residual,)

        layer.output.register_forward_pre_hook(lambda m, args, layer=layer: setattr(layer, "residual", args[1]))
        layer.output.LayerNorm.register_forward_pre_hook(divide)
    with torch.no_grad():
        out = model(**load_file(str(SAVED / "inputs.safetensors")))
    close(out.last_hidden_state, expected(case)["last_hidden_state"], case, TOLERANCE)
