"""The bits of a row depend neither on the adapters of its neighbours nor on how many rows share its own.

Every method on three models, float32 and bfloat16, evaluation and training, C++ and plain torch, beside rows without an
adapter, averages and stacks, and every head: a sample of batches, and with ``-m thorough`` more models, both
implementations of attention, and as many batches as find what fails once in hundreds.
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
ROUTABLE = (*NAMES, "__base__", "mean", "both")
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
    "dropout in some": (hfadapt.LoRA(r=4, dropout=0.2), hfadapt.LoRA(r=2), SMALL["pal"]),
    "prefixes of three forms": (
        hfadapt.PrefixConfig(3, mlp_size=8),
        hfadapt.PrefixConfig(5, reparametrization="flat", form="no_gating"),
        hfadapt.PrefixConfig(4, reparametrization="flat", form="gate_add", dropout=0.1),
    ),
    "gated and not": (SMALL["unipelt"], SMALL["mam"], hfadapt.PrefixConfig(11, reparametrization="flat")),
}
HEADS = {
    "classes": (hfadapt.Classification(2), hfadapt.Classification(7), hfadapt.Regression()),
    "with a layer": (
        hfadapt.Classification(2, inner_size=16),
        hfadapt.MultiLabel(4, inner_size=8, pooling="cls"),
        hfadapt.Regression(low=0, high=5, pooling="last"),
    ),
    "of tokens": (hfadapt.TokenClassification(5), hfadapt.Classification(3), hfadapt.Span()),
}
DRAWS = pytest.mark.parametrize("draws", [1, pytest.param(40, marks=pytest.mark.thorough)])


OTHERS = ("gpt2", "t5", "llama", "qwen2", "opt")
MODELS = ["bert", "gpt2", "t5", *(pytest.param(name, marks=pytest.mark.thorough) for name in OTHERS[2:])]


def adapted(model_type, methods, attention=None):
    model = tiny_model(model_type, attn_implementation=attention)
    try:
        for name, method in zip(NAMES, methods, strict=True):
            hfadapt.attach(model, method, names=[name], seed=0, verify=False)
    except AttachError as error:
        pytest.skip(str(error).partition(";")[0])
    hfadapt.compose(model, "mean", hfadapt.Average("a", "b", weights=(0.3, 0.6)))
    hfadapt.compose(model, "both", hfadapt.Stack("b", "c"))
    randomize(model)
    return model


def bits(tensor):
    return tensor.contiguous().view(torch.int16 if tensor.dtype == torch.bfloat16 else torch.int32)


def changed_rows(model, inputs_of, backend, draw, mine=None, run=output, **options):
    """One batch whose row i has the same adapter alone, among its like, and among others; which of these differ."""
    rows, tokens = draw.choice((2, 3, 5, 8, 9)), draw.choice((1, 2, 3, 4, 5, 7, 8, 11, 13, 16))
    row, mine = draw.randrange(rows), draw.choice(NAMES) if mine is None else mine
    names = ROUTABLE if run is output else NAMES
    others = [name for name in names if name != mine]
    neighbours = [[mine] * rows, [draw.choice(others) for _ in range(rows)], [draw.choice(names) for _ in range(rows)]]
    inputs = inputs_of(rows, tokens)
    results = []
    for ids in neighbours:
        ids[row] = mine
        torch.manual_seed(3)
        with torch.no_grad(), use_backend(backend):
            results.append(run(model, inputs, task_ids=ids, **options)[row])
    assert results[0].isfinite().all()
    return [
        f"{backend} {results[0].dtype} training={model.training}, {tokens} tokens, row {row} of {ids}: off by "
        f"{(got.float() - results[0].float()).abs().max():.2g}"
        for ids, got in zip(neighbours[1:], results[1:], strict=True)
        if not torch.equal(bits(got), bits(results[0]))
    ]


def sweep(model, inputs_of, draws, part=lambda model: model, **options):
    draw, failures = random.Random(type(model).__name__), []
    for dtype in (torch.float32, torch.bfloat16):
        cast = copy.deepcopy(model)
        part(cast).to(dtype)
        for training in (False, True):
            cast.train(training)
            for backend in BACKENDS:
                for _ in range(draws):
                    failures += changed_rows(cast, inputs_of, backend, draw, **options)
    assert not failures, "\n".join(failures)


def padded(model_type, head=None):
    return lambda rows, tokens: tiny_inputs(
        model_type, head, batch=rows, length=tokens, padding="right" if tokens > 2 else None
    )


@DRAWS
@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_row_has_the_same_bits_whoever_its_neighbours_are(method, model_type, draws):
    sweep(adapted(model_type, [SMALL.get(method, method)] * len(NAMES)), padded(model_type), draws)


@DRAWS
@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("methods", MIXED)
def test_a_row_has_the_same_bits_beside_adapters_of_other_methods(methods, model_type, draws):
    sweep(adapted(model_type, MIXED[methods]), padded(model_type), draws)


@DRAWS
@pytest.mark.parametrize("name", ["__base__", "mean", "both"])
@pytest.mark.parametrize("model_type", ["bert", *(pytest.param(name, marks=pytest.mark.thorough) for name in OTHERS)])
@pytest.mark.parametrize("method", ["lora", "prefix", "pal"])
def test_a_row_of_the_base_or_a_composition_has_the_same_bits(method, model_type, name, draws):
    sweep(adapted(model_type, [SMALL.get(method, method)] * len(NAMES)), padded(model_type), draws, mine=name)


@DRAWS
@pytest.mark.parametrize("weights", [False, True], ids=["kernel", "with attention weights"])
@pytest.mark.parametrize("model_type", MODELS)
def test_a_row_has_the_same_bits_beside_longer_prefixes_in_eager_attention(model_type, weights, draws):
    methods = (hfadapt.PrefixConfig(3, mlp_size=8), hfadapt.PrefixConfig(11, mlp_size=8), hfadapt.LoRA(r=2))
    options = {"output_attentions": True} if weights else {}
    sweep(adapted(model_type, methods, "eager"), padded(model_type), draws, **options)


@torch.no_grad()
def test_attention_weights_of_shorter_prefixes_stand_before_and_behind_zeros():
    model = adapted("bert", (hfadapt.PrefixConfig(3), hfadapt.PrefixConfig(5), "lora"), "eager")
    inputs = tiny_inputs("bert", batch=3)
    alone = [model(**inputs, task_ids=name, output_attentions=True).attentions[0] for name in NAMES]
    mixed = model(**inputs, task_ids=list(NAMES), output_attentions=True).attentions[0]
    tokens = inputs["input_ids"].shape[1]
    assert mixed.shape[-1] == 5 + tokens
    for row, (length, wide) in enumerate(zip((3, 5, 0), alone, strict=True)):
        assert torch.equal(mixed[row][..., :length], wide[row][..., :length])
        assert not mixed[row][..., length:5].any()
        assert torch.equal(mixed[row][..., 5:], wide[row][..., length:])


def logits(model, inputs, **more):
    return model(**inputs, **more).logits


@DRAWS
@pytest.mark.parametrize("model_type", MODELS)
@pytest.mark.parametrize("heads", HEADS)
def test_logits_have_the_same_bits_beside_rows_of_other_heads(heads, model_type, draws):
    tasks = [hfadapt.Task(name, head=head) for name, head in zip(NAMES, HEADS[heads], strict=True)]
    model = hfadapt.MultiTaskModel.from_base(tiny_model(model_type), tasks, "lora")
    randomize(model.base)
    inputs_of = padded(model_type, "sequence-classification")
    sweep(model, inputs_of, draws, part=lambda model: model.base, run=logits)


@DRAWS
@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama", "t5"])
def test_logits_have_the_same_bits_beside_rows_of_other_adapters_own_heads(model_type, draws):
    model = tiny_model(model_type, "sequence-classification")
    for name in NAMES:
        hfadapt.attach(model, "lora", names=[name], seed=0, verify=False, train_head=True)
    randomize(model)
    inputs_of = padded(model_type, "sequence-classification")
    sweep(model, lambda rows, tokens: inputs_of(rows, max(tokens, 3)), draws, run=logits)
