"""How far a batch is padded changes no row, however the mask reaches the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hfadapt
from hfadapt import plugins
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import skip_without_attention_functions

GATED = {
    "unipelt": hfadapt.UniPELT({"num_virtual_tokens": 3, "mlp_size": 8}, {"size": 4}, {"r": 2}),
    "lora gate": hfadapt.LoRA(2, target_modules=("query", "key", "value", "ffn_in"), gate="mean"),
    "prefix gate": hfadapt.PrefixConfig(3, "flat", gate="mean"),
    "bottleneck gate": hfadapt.Bottleneck(4, on=("attention", "ffn"), use_gating=True),
}
SMALL = {
    "pal": hfadapt.PAL(8, num_heads=2),
    "prefix": hfadapt.PrefixConfig(3, mlp_size=8),
    "unipelt": GATED["unipelt"],
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 4}),
    "top_attention": hfadapt.TopAttention(8, 2, num_heads=2),
    "top_ffn": hfadapt.TopFFN(8, 2),
}
METHODS = {name: SMALL.get(name, name) for name in plugins.methods() if name != "fusion"} | GATED
LENGTHS = (7, 3)
PADDED, PAD = max(LENGTHS) + 2, 5


def adapted(method, model_type, **options):
    model = tiny_model(model_type, **options).double()
    hfadapt.attach(model, method, seed=0, verify=False)
    randomize(model)
    return model


def ids_of(model_type):
    """Rows of different length; the longest is padded too, as beside longer rows of a batch."""
    found = tiny_inputs(model_type, batch=2, length=max(LENGTHS))["input_ids"]
    return [found[row, :length] for row, length in enumerate(LENGTHS)]


def batch_of(rows, side, length=PADDED):
    ids, mask = torch.full((len(rows), length), PAD), torch.zeros(len(rows), length, dtype=torch.long)
    for number, row in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(length - len(row), length)
        ids[number, place], mask[number, place] = row, 1
    return ids, mask


def positions(mask):
    return (mask.cumsum(1) - 1).clamp_min(0)


def square(mask, causal, floating):
    """The mask of queries and keys that a padding mask stands for."""
    seen = mask.bool()[:, None, None, :].expand(-1, 1, mask.shape[1], -1)
    seen = seen & torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool).tril() if causal else seen
    # Llama's softmax is in float32, where the least float64 is infinite and rows of padding would be NaN.
    return torch.zeros(seen.shape).double().masked_fill(~seen, torch.finfo(torch.float32).min) if floating else seen


def check_rows(outputs, alone, mask, what):
    for number, want in enumerate(alone):
        got = outputs[number][mask[number].bool()]
        error = (got - want[0]).abs().max().item()
        assert error < 1e-6 * max(1.0, want.abs().max().item()), f"{what}: row {number} differs by {error:.2g}"


# Whose rows depend on their other tokens; of the rest one model shows enough.
LOOKS_AROUND = ("unipelt", "bottleneck gate", "pal", "top_layer")
ALONE = [
    *((name, "bert") for name in METHODS),
    *((name, model_type) for name in (*LOOKS_AROUND, "mam") for model_type in ("gpt2", "llama")),
    *((name, "deberta-v2") for name in ("lora gate", *LOOKS_AROUND[1:])),
]


@pytest.mark.parametrize(("name", "model_type"), ALONE)
@torch.no_grad()
def test_a_row_is_the_same_alone_and_in_a_batch(name, model_type):
    model, rows = adapted(METHODS[name], model_type), ids_of(model_type)
    alone = [model(row[None])[0] for row in rows]
    for side in ("right", "left"):
        ids, mask = batch_of(rows, side)
        check_rows(model(ids, attention_mask=mask, position_ids=positions(mask))[0], alone, mask, side)


@pytest.mark.parametrize("form", ["by place", "square", "square, additive", "rectangle"])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("name", LOOKS_AROUND)
@torch.no_grad()
def test_every_form_of_a_mask_says_what_is_padding(name, model_type, form):
    floating = form == "square, additive"
    options = {"attn_implementation": "eager" if floating else "sdpa"}
    model, rows = adapted(METHODS[name], model_type, **options), ids_of(model_type)
    causal = model_type == "llama"
    for side in ("right", "left"):
        ids, mask = batch_of(rows, side)
        alone = [model(row[None])[0] for row in rows]
        if form == "by place":
            out = model(ids, mask, position_ids=positions(mask))[0]
        elif form == "rectangle":
            if causal:
                with pytest.raises(RoutingError, match="which of them are padding"):
                    model(ids, attention_mask=mask.bool()[:, None, None, :])
                return
            out = model(ids, attention_mask=mask.bool()[:, None, None, :], position_ids=positions(mask))[0]
        else:
            out = model(ids, attention_mask=square(mask, causal, floating), position_ids=positions(mask))[0]
        check_rows(out, alone, mask, f"{form}, {side}")
        assert not torch.allclose(model(ids)[0], out), "without a mask, padding is text"


@pytest.mark.parametrize("name", LOOKS_AROUND)
@pytest.mark.parametrize("model_type", ["bert", "llama"])
@torch.no_grad()
def test_a_mask_that_tells_documents_of_a_row_apart_is_refused(name, model_type):
    model, ids = adapted(METHODS[name], model_type), tiny_inputs(model_type)["input_ids"]
    document = torch.arange(ids.shape[1]) // 4
    seen = (document[:, None] == document).expand(len(ids), 1, -1, -1)
    seen = square(torch.ones_like(ids), model_type == "llama", False) & seen
    with pytest.raises(RoutingError, match="which of them are padding, and no more"):
        model(ids, attention_mask=seen)


@pytest.mark.parametrize("name", [*GATED, "mam", "pal", "top_layer"])
@pytest.mark.parametrize("model_type", ["t5", "bart"])
@torch.no_grad()
def test_encoders_and_decoders_each_have_padding_of_their_own(name, model_type):
    if name in ("prefix gate", "unipelt", "mam"):
        skip_without_attention_functions(model_type)
    model, rows = adapted(METHODS[name], model_type), ids_of(model_type)
    answers = [row[:4] for row in reversed(rows)]
    ids, mask = batch_of(rows, "left" if model_type == "t5" else "right")  # Bart counts positions from the left
    # Of the encoder's length, so that a mask cannot be told by its shape.
    decoder_ids, decoder_mask = batch_of(answers, "right", ids.shape[1])
    alone = [
        model(input_ids=row[None], decoder_input_ids=answer[None])[0] for row, answer in zip(rows, answers, strict=True)
    ]
    given = {"attention_mask": mask, "decoder_input_ids": decoder_ids, "decoder_attention_mask": decoder_mask}
    check_rows(model(input_ids=ids, **given)[0], alone, decoder_mask, name)
    check_rows(model(ids, *given.values())[0], alone, decoder_mask, f"{name}, by place")


@torch.no_grad()
def test_the_published_gate_counts_padding():
    rows = ids_of("bert")
    ids, mask = batch_of(rows, "right")
    published = (
        hfadapt.LoRA(2, gate="mean_padded"),
        hfadapt.PrefixConfig(3, "flat", gate="mean_padded"),
        dataclasses.replace(GATED["bottleneck gate"], use_gating="mean_padded"),
    )
    for config in published:
        model = adapted(config, "bert")
        padded, short = model(ids, attention_mask=mask)[0], model(rows[1][None])[0]
        assert not torch.allclose(padded[1, :3], short[0], atol=1e-6)


class AddsAToken(torch.nn.Module):
    """Embeddings with a token of the model's own in front, of which the caller's mask knows nothing."""

    def __init__(self, stock):
        super().__init__()
        self.stock = stock

    def forward(self, *args, **kwargs):
        made = self.stock(*args, **kwargs)
        return torch.cat([made[:, :1], made], 1)


@pytest.mark.parametrize("method", ["pal", "unipelt"])
def test_a_mask_that_is_a_token_short_is_an_error_and_no_dropped_mask(method):
    model = tiny_model("bert")
    model.embeddings = AddsAToken(model.embeddings)
    model._create_attention_masks = lambda **more: (None, None)
    hfadapt.attach(model, METHODS[method], verify=False)
    ids, mask = batch_of(ids_of("bert"), "right")
    whole = model(input_ids=ids, attention_mask=torch.ones_like(mask))[0]
    assert whole.shape[1] == PADDED + 1
    with pytest.raises(RoutingError, match="differ in number"):
        model(input_ids=ids, attention_mask=mask)
