"""The bits of a row depend neither on the adapters of its neighbours nor on how many rows share its own.

Every method on three models, float32 and bfloat16, evaluation and training, C++ and plain torch: a sample of batches,
and with ``-m thorough`` as many as find what fails once in hundreds.
"""

from __future__ import annotations

import copy
import random

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import AttachError
from hfadapt.testing.conformance import output, randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt_kernels import native, use_backend
from tests.conformance.small import SMALL

NAMES = ("a", "b", "c")
BACKENDS = ("cpu", "reference") if native.available() else ("reference",)
METHODS = [name for name in sorted(plugins.methods()) if name != "fusion"]  # it combines adapters: no row has one
# Adapters of other methods, or of other sizes, meet in one batch: rows of one have none at the places of another.
MIXED = {
    "two with a fused norm, one without": (hfadapt.LowRank(8), "lora", "par_bn"),
    "two sizes and a prefix": (
        hfadapt.Bottleneck(size=5),
        hfadapt.Bottleneck(size=16),
        hfadapt.PrefixConfig(3, mlp_size=8),
    ),
    "on top and within": (hfadapt.TopFFN(8, 2), hfadapt.TopFFN(12, 1), hfadapt.LowRank(4)),
    "three ranks": (hfadapt.LoRA(r=8), hfadapt.LoRA(r=3), hfadapt.LowRank(5)),
}
DRAWS = pytest.mark.parametrize("draws", [1, pytest.param(40, marks=pytest.mark.thorough)])


def adapted(model_type, methods):
    model = tiny_model(model_type)
    try:
        for name, method in zip(NAMES, methods, strict=True):
            hfadapt.attach(model, method, names=[name], seed=0, verify=False)
    except AttachError as error:
        pytest.skip(str(error).partition(";")[0])
    randomize(model)
    return model


def bits(tensor):
    return tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


def changed_rows(model, model_type, backend, draw):
    """One batch whose row i has the same adapter alone, among its like, and among others; which of these differ."""
    rows, tokens = draw.choice((2, 3, 5, 8, 9)), draw.choice((1, 2, 3, 4, 5, 7, 8, 11, 13, 16))
    row, mine = draw.randrange(rows), draw.choice(NAMES)
    others = [name for name in NAMES if name != mine]
    neighbours = [[mine] * rows, [draw.choice(others) for _ in range(rows)], [draw.choice(NAMES) for _ in range(rows)]]
    inputs = tiny_inputs(model_type, batch=rows, length=tokens, padding="right" if tokens > 2 else None)
    results = []
    for ids in neighbours:
        ids[row] = mine
        torch.manual_seed(3)
        with torch.no_grad(), use_backend(backend):
            results.append(output(model, inputs, task_ids=ids)[row])
    assert results[0].isfinite().all()
    return [
        f"{backend} {results[0].dtype} training={model.training}, {tokens} tokens, row {row} of {ids}: off by "
        f"{(got.float() - results[0].float()).abs().max():.2g}"
        for ids, got in zip(neighbours[1:], results[1:], strict=True)
        if not torch.equal(bits(got), bits(results[0]))
    ]


def sweep(model, model_type, draws, modes):
    draw, failures = random.Random(model_type), []
    for dtype in (torch.float32, torch.bfloat16):
        cast = copy.deepcopy(model).to(dtype)
        for training in modes:
            cast.train(training)
            for backend in BACKENDS:
                for _ in range(draws):
                    failures += changed_rows(cast, model_type, backend, draw)
    assert not failures, "\n".join(failures)


@DRAWS
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("method", METHODS)
def test_a_row_has_the_same_bits_whoever_its_neighbours_are(method, model_type, draws):
    model = adapted(model_type, [SMALL.get(method, method)] * len(NAMES))
    sweep(model, model_type, draws, modes=(False, True))


@DRAWS
@pytest.mark.parametrize("model_type", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("methods", MIXED)
def test_a_row_has_the_same_bits_beside_adapters_of_other_methods(methods, model_type, draws):
    # In evaluation only: in training, what a neighbour's method draws at random moves what the base draws after it.
    sweep(adapted(model_type, MIXED[methods]), model_type, draws, modes=(False,))
