"""A sample of every kind of model in transformers, with LoRA on all linears, mapped or not; `make sweep` tries all."""

from __future__ import annotations

import pytest

import hfadapt
from hfadapt.architecture import is_linear, resolve
from hfadapt.testing.every_type import tiny_of_type
from hfadapt.testing.type_checks import METHODS, stock_inputs, try_method

# Some modules of these read no rows of the batch: a table of positions.
ONE_ADAPTER = ("wav2vec2-conformer",)

TYPES = (
    # text: encoders, decoders, both; attention of many kinds
    "canine", "deberta", "fnet", "gemma3_text", "ibert", "longformer", "mobilebert", "squeezebert", "xlnet",
    "falcon", "fsmt", "glm4", "granite", "gpt_neox", "phi3", "led", "umt5",
    # mixtures of experts, low-rank attention, state spaces and hybrids
    "deepseek_v3", "gpt_oss", "granitemoe", "mixtral", "olmoe", "qwen3_moe",
    "falcon_mamba", "jamba", "lfm2", "mamba2", "qwen3_next", "rwkv",
    # images, sound, and both beside text
    "beit", "convnext", "dinov2", "segformer", "swin", "videomae",
    "audio-spectrogram-transformer", "hubert", "wav2vec2-conformer",
    "gemma3", "llava", "qwen2_5_vl", "clipseg", "git", "wavtokenizer",
)  # fmt: skip


@pytest.mark.parametrize("model_type", TYPES)
def test_lora_takes_every_kind_of_model(model_type: str) -> None:
    model = tiny_of_type(model_type)
    found = try_method(model, stock_inputs(model), METHODS["lora"]())
    assert found.verdict == ("one adapter a batch" if model_type in ONE_ADAPTER else "ok"), found.reason
    assert found.places


@pytest.mark.parametrize("method", ["bottleneck", "pal"])
@pytest.mark.parametrize("model_type", ["beit", "gemma3", "gpt_oss", "granite", "mixtral"])
def test_methods_that_need_a_map_take_what_the_probe_maps(model_type: str, method: str) -> None:
    model = tiny_of_type(model_type)
    found = try_method(model, stock_inputs(model), METHODS[method]())
    assert found.verdict == "ok", found.reason


@pytest.mark.parametrize(
    ("model_type", "method"),
    [
        ("deepseek_v3", "bottleneck"),
        ("deepseek_v3", "prefix"),
        ("afmoe", "prefix"),
        ("gemma4_text", "low_rank"),
        ("lfm2", "bottleneck"),
        ("jamba", "parallel"),
        ("nemotron_h", "bottleneck"),
        ("nemotron_h", "prefix"),
        ("mamba", "pal"),
        ("mamba", "lhuc"),
        ("longformer", "pal"),
        ("swin", "bottleneck"),
        ("swin", "prefix"),
        ("granite_speech", "prefix"),
        ("got_ocr2", "prefix"),
        ("apertus1p5", "prefix"),
        ("sam_vision_model", "pal"),
        ("levit", "pal"),
        ("cvt", "low_rank"),
        ("mobilebert", "bottleneck"),
        ("inkling_text", "bottleneck"),
        ("zaya", "parallel"),
        ("higgs_audio_v2", "low_rank"),
        ("xlm", "bottleneck"),
        ("xlm", "pal"),
        ("flaubert", "lhuc"),
        ("fsmt", "parallel"),
        ("fsmt", "pal"),
        ("deepseek_v4", "lhuc"),
        ("vitdet", "bottleneck"),
        ("vitdet", "lhuc"),
        ("sam3_vision_model", "prefix"),
        ("doge", "prefix"),
        ("maskformer", "prefix"),
        ("nemo_speechlm", "prefix"),
        ("xclip", "prefix"),
        ("zamba", "prefix"),
        ("mobilevit", "lhuc"),
        ("hrm_text", "bottleneck"),
        ("xclip", "pal"),
        ("fastspeech2_conformer", "parallel"),
        ("falcon_h1", "lora by role"),
        ("deepseek_v3", "lora by role"),
    ],
)
def test_methods_take_parts_that_are_known_by_their_ends(model_type: str, method: str) -> None:
    """Low-rank and gated attention, mixtures, gated convolutions, state spaces alone and beside attention.

    Layers that have time before the batch, those that keep several streams, and attention in windows of an image, in
    stages of layers, too; and models of which a part computes attention by itself. Layers that are one sum around
    narrower parts (MobileBERT), add to a stream with a bias (Zaya), convolve over what they add (Inkling), or whose
    parts stand in lists beside each other (XLM). Images with the channels first (ViTDet), windows as large as the image
    and its padding (SAM 3), modules that run several times in a pass (HRM), captions beside every video (X-CLIP). Text
    beside a tower of stages and parts with another attention function than the model around them (MaskFormer) or a
    config that transformers does not know of (X-CLIP), layers of which some compute attention themselves (Zamba), and
    a language model alone, for the towers beside it have nothing to read (Nemotron).
    """
    model = tiny_of_type(model_type)
    found = try_method(model, stock_inputs(model), METHODS[method]())
    assert found.verdict == "ok", found.reason


def test_attention_beside_a_layer_is_refused_where_a_list_holds_the_tokens_of_all_rows() -> None:
    model = tiny_of_type("qwen2_5_vl_vision")
    found = try_method(model, stock_inputs(model), METHODS["pal"]())
    assert (found.verdict, "in one list" in found.reason) == ("refused", True), found.reason
    beside = {"method": "pal", "g": "ffn", "size": 8}
    assert try_method(model, stock_inputs(model), beside).verdict == "one adapter a batch"


@pytest.mark.parametrize(("model_type", "layers"), [("swin", 4), ("cvt", 13), ("levit", 8)])
def test_the_layers_of_stages_are_mapped_and_not_the_stages(model_type: str, layers: int) -> None:
    arch = resolve(tiny_of_type(model_type))
    found = [layer for layer in arch.layers() if layer.has("attention") or layer.has("ffn")]
    assert len(found) == layers
    if model_type == "swin":
        assert all(layer.stack.num_heads for layer in found), "attention in windows has heads"


def test_rows_that_a_layer_mixes_by_itself_have_one_adapter_a_batch() -> None:
    """Autoformer's attention rolls values by delays of other rows, in evaluation."""
    model = tiny_of_type("autoformer")
    assert try_method(model, stock_inputs(model), METHODS["lhuc"]()).verdict == "one adapter a batch"


def test_lora_takes_the_linears_of_layers_that_no_module_holds() -> None:
    model = tiny_of_type("xlm")
    count = sum(is_linear(module) for module in model.modules())
    for names in (("all-linear",), ("q_lin", "k_lin", "v_lin", "out_lin", "lin1", "lin2")):
        found = try_method(model, stock_inputs(model), hfadapt.LoRA(target_modules=names))
        assert (found.verdict, found.places) == ("ok", count), found.reason


@pytest.mark.parametrize(
    ("model_type", "method", "says"),
    [
        ("resnet", "bottleneck", "heads on the frozen model"),
        ("resnet", "lora", "target_modules=('convolution',)"),
        ("squeezebert", "bottleneck", "no linears in encoder.layers (SqueezeBertModule)"),
        ("convnext", "bottleneck", "target_modules='all-linear'"),
        ("mamba", "prefix", "mixed by MambaMixer"),
        ("mobilebert", "prefix", "attention.self (MobileBertSelfAttention) calls it, and the map does not know it"),
    ],
)
def test_refusals_name_what_works_for_the_model(model_type: str, method: str, says: str) -> None:
    model = tiny_of_type(model_type)
    found = try_method(model, stock_inputs(model), METHODS[method]())
    assert (found.verdict, says in found.reason) == ("refused", True), found.reason
    assert "language model" not in found.reason, "a model without one"
