"""Small valid inputs for a model that nothing is known of but its config and its signature.

A probe or a check feeds one forward with them. What a model takes is asked of the model: the names of its ``forward``,
its main input, the sizes in its config. Where that leaves more than one form (an image model may want frames, a
spectrogram may stand either way round), there are several candidates, and the first that runs is the one.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError
from .companions import add_companions, patches, series

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["candidate_inputs", "example_inputs", "special_tokens"]

# Different lengths, so that encoder states can never be taken for the decoder's own.
TOKENS = 7
DECODER_TOKENS = 5
SAMPLES = 7680  # many downsampling rates divide it
CHOICES = 2
_VIDEO_FRAMES = ("num_frames", "tubelet_frames", "frames_per_clip")
# Heads of encoder-decoders that make the decoder's input from the encoder's.
_SHIFTING = ("ForSequenceClassification", "ForQuestionAnswering", "ForTokenClassification")


def special_tokens(config: Any) -> set[int]:
    """Return the token ids that a config gives a meaning; it may hold several for one (Llama 3.1's ends of a text)."""
    found: set[int] = set()
    for name, value in vars(config).items():
        if name.endswith(("token_id", "token_ids", "token_index")) and name != "suppress_token_ids":
            given = value if isinstance(value, (list, tuple, set)) else (value,)
            found.update(one for one in given if isinstance(one, int) and not isinstance(one, bool))
    return found


def example_inputs(model: nn.Module, rows: int = 1) -> dict[str, Any]:
    """Return keyword arguments for one forward pass, the likeliest of `candidate_inputs`.

    Args:
        model: Any model with a config.
        rows: B.

    Raises:
        ArchitectureError: The model takes inputs of a kind that is not known here.
    """
    for inputs in candidate_inputs(model, rows):
        return inputs
    names = list(inspect.signature(model.forward).parameters)
    raise ArchitectureError(
        "no example input can be made for the model",
        where=type(model).__name__,
        got=f"forward({', '.join(names)})",
        allowed="input_ids, pixel_values, pixel_values_videos, input_features, input_values",
        try_="inputs of your own: hfadapt.probe(model, inputs={...})",
    )


def candidate_inputs(model: nn.Module, rows: int = 1) -> Iterator[dict[str, Any]]:
    """Yield keyword arguments for one forward of ``model``, the likeliest first; every row differs from the others.

    Args:
        model: Any model with a config; its device and dtype are those of the inputs.
        rows: B.
    """
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    stream = torch.Generator().manual_seed(0)
    maker = _Maker(config, rows, stream, multiple_choice=type(model).__name__.endswith("ForMultipleChoice"))
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    dtype = torch.float32 if parameter is None else parameter.dtype
    device = torch.device("cpu") if parameter is None else parameter.device
    decodes = bool(getattr(config, "is_encoder_decoder", False)) and "decoder_input_ids" in names
    decodes = decodes and not type(model).__name__.endswith(_SHIFTING)
    for made in _sources(model, config, set(names), maker):
        given = dict(made)
        if not given:
            continue
        if decodes:
            books = getattr(getattr(config, "decoder_config", None), "num_channels", None)
            words = [maker.tokens(DECODER_TOKENS, decoder=True) for _ in range(books or 1)]
            given["decoder_input_ids"] = words[0] if books is None else torch.stack(words, -1)
        if getattr(config, "add_cross_attention", False) and "encoder_hidden_states" in names:
            width = getattr(config, "cross_attention_hidden_size", None) or config.hidden_size
            given["encoder_hidden_states"] = maker.noise(TOKENS - 1, width)
        for whole in add_companions(model, given, rows, stream):
            yield {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in whole.items()}


def _sources(model: nn.Module, config: Any, names: set[str], maker: _Maker) -> Iterator[dict[str, Tensor]]:
    """Yield the forms of what a model reads."""
    text = {"input_ids": maker.tokens(TOKENS)} if "input_ids" in names else {}
    seen = [("pixel_values", maker.images)] if "pixel_values" in names else []
    if not seen and "pixel_values_videos" in names:
        seen = [("pixel_values_videos", maker.videos)]
    heard = [(n, maker.sounds) for n in ("input_features", "input_values", "audio_values") if n in names][:1]
    # What has a token of its own among the words may be left out; without one the model compares the two (CLIP).
    optional = bool(text) and any(
        getattr(config, f"{kind}_token_{form}", None) is not None
        for kind in ("image", "video", "audio")
        for form in ("id", "index")
    )
    main = getattr(model, "main_input_name", "input_ids")
    if text and (optional or not (seen or heard)):
        yield text
    for name, forms in (*seen, *heard):
        for value in forms(name):
            if text and main == "input_ids":
                yield {**text, name: value}
            yield {name: value}
            if text and main != "input_ids":
                yield {**text, name: value}
    if text and not optional and (seen or heard):
        yield text
    yield from _of_other_kinds(config, names, maker)
    yield from _own_examples(model, maker.rows)
    yield from _by_name(model, names, maker)


def _of_other_kinds(config: Any, names: set[str], maker: _Maker) -> Iterator[dict[str, Tensor]]:
    """Yield patches with a grid, time series, latents, spectrograms beside samples, and words of several codebooks."""
    if names & {"grid_thw", "image_grid_thw", "spatial_shapes", "pixel_position_ids", "target_sizes"}:
        name = "pixel_values" if "pixel_values" in names else "hidden_states"
        text = {"input_ids": maker.tokens(TOKENS)} if "input_ids" in names else {}
        for value in patches(_vision_config(config), maker.rows, maker.stream):
            yield {**text, name: value if "grid_thw" in str(names) else value.unflatten(0, (maker.rows, -1))}
    if "past_values" in names:
        yield from ({"past_values": value} for value in series(config, maker.rows, maker.stream))
    if "latents" in names:
        yield {"latents": maker.noise(int(getattr(config, "hidden_size", 32)), TOKENS)}
    if {"input_features", "input_values"} <= names:
        for spectrogram in maker.sounds("input_features"):
            yield {"input_features": spectrogram, "input_values": maker.noise(1, SAMPLES)}
    if "audio_mel" in names:
        heard = maker.noise(TOKENS**2, _first(config, ("input_feat_size",), 128))
        yield {"audio_mel": heard, "audio_mel_mask": torch.zeros(heard.shape[:2], dtype=torch.bool)}
    books = _first(config, ("num_codebooks",), _first(_text_config(config), ("num_codebooks",), 0))
    if books and "input_ids" in names:
        for count in (books, books + 1):
            yield {"input_ids": torch.stack([maker.tokens(TOKENS) for _ in range(count)], -1)}


def _own_examples(model: nn.Module, rows: int) -> Iterator[dict[str, Tensor]]:
    """What the model itself names as an example (``dummy_inputs``), with as many rows as asked for."""
    try:
        own = getattr(model, "dummy_inputs", None)
    except Exception:  # a property of the model's, which may need what its config lacks
        return
    if isinstance(own, dict) and own and all(isinstance(v, Tensor) and v.dim() for v in own.values()):
        yield {k: v.repeat(rows, *(1,) * (v.dim() - 1))[:rows] for k, v in own.items()}


def _by_name(model: nn.Module, names: set[str], maker: _Maker) -> Iterator[dict[str, Tensor]]:
    """For a module of the user's own: words where it looks words up, else vectors as wide as its first linear reads."""
    from .linears import is_linear, linear_sizes

    needed = [
        name
        for name, p in inspect.signature(model.forward).parameters.items()
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    if len(needed) != 1 or needed[0] in ("input_ids", "pixel_values", "input_features", "input_values"):
        return
    words = next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), 0)
    width = next((linear_sizes(m)[0] for m in model.modules() if is_linear(m)), 0)
    if words:
        yield {needed[0]: maker.integers(words, TOKENS)}
    if width:
        yield {needed[0]: maker.noise(TOKENS, width)}
        yield {needed[0]: maker.noise(width)}


class _Maker:
    """Makes tensors whose first axis is the batch's."""

    def __init__(self, config: Any, rows: int, stream: torch.Generator, multiple_choice: bool) -> None:
        self.config = config
        self.rows = rows
        self.stream = stream
        self.multiple_choice = multiple_choice

    def noise(self, *shape: int) -> Tensor:
        """Floating-point numbers ``[B, *shape]``."""
        return torch.randn(self.rows, *shape, generator=self.stream)

    def integers(self, high: int, *shape: int) -> Tensor:
        """Numbers from 0 to ``high - 1``, ``[B, *shape]``."""
        return torch.randint(0, high, (self.rows, *shape), generator=self.stream)

    def tokens(self, count: int, decoder: bool = False) -> Tensor:
        """Token ids ``[B, T]`` without any of a special meaning, but for the end of a text that some heads look for."""
        text = _text_config(self.config)
        size = int((getattr(text, "decoder_vocab_size", None) if decoder else None) or getattr(text, "vocab_size", 100))
        special = special_tokens(text) | special_tokens(self.config)
        plain = [i for i in range(max(0, size - 200), size) if i not in special] or [0]
        shape = (CHOICES, count) if self.multiple_choice and not decoder else (count,)
        ids = torch.tensor(plain)[self.integers(len(plain), *shape)]
        end = getattr(text, "eos_token_id", None)
        end = next(iter(end), None) if isinstance(end, (list, tuple)) else end
        if isinstance(end, int) and 0 <= end < size:
            ids[..., -1] = end
        return ids

    def images(self, name: str) -> Iterator[Tensor]:
        """Images ``[B, C, H, W]``, or frames ``[B, F, C, H, W]`` where the config counts them."""
        vision = _vision_config(self.config)
        channels = _first(vision, ("num_channels", "in_channels", "in_chans"), 3)
        height, width = _size(_first(vision, ("image_size", "img_size", "input_size", "max_img_size"), 224))
        frames = next((n for key in _VIDEO_FRAMES if isinstance(n := getattr(vision, key, None), int)), None)
        if frames is not None:
            yield self.noise(frames, channels, height, width)
        yield self.noise(channels, height, width)
        if frames is None:  # two images to compare, and any other number of them a row
            yield self.noise(2, channels, height, width)

    def videos(self, name: str) -> Iterator[Tensor]:
        """Frames ``[B, F, C, H, W]``."""
        vision = _vision_config(self.config)
        channels = _first(vision, ("num_channels", "in_channels", "in_chans"), 3)
        height, width = _size(_first(vision, ("image_size", "crop_size", "img_size"), 224))
        yield self.noise(_first(vision, _VIDEO_FRAMES, 2), channels, height, width)

    def sounds(self, name: str) -> Iterator[Tensor]:
        """Spectrograms ``[B, bins, frames]`` and the other way round, or samples ``[B, S]``."""
        audio = next((c for key in ("audio_config", "audio_encoder", "speech_config", "encoder_config")
                      if hasattr(c := getattr(self.config, key, None), "model_type")), self.config)  # fmt: skip
        bins = _first(
            audio,
            (
                "num_mel_bins",
                "feature_size",
                "input_feat_per_channel",
                "feature_projection_input_dim",
                "input_dim",
                "num_melspec_bins",
            ),
            80,
        )
        positions = getattr(audio, "max_source_positions", None)
        frames = 2 * positions if isinstance(positions, int) else _first(audio, ("max_length", "spec_size"), 64)
        window = getattr(audio, "n_window", None)
        frames = 2 * window if isinstance(window, int) else frames
        if name != "input_features":
            yield self.noise(SAMPLES)
            yield self.noise(1, SAMPLES)
        yield self.noise(bins, frames)
        yield self.noise(frames, bins)
        yield self.noise(1, frames, bins)
        if not hasattr(audio, "num_mel_bins"):
            yield self.noise(frames, 128)


def _text_config(config: Any) -> Any:
    """The config of what reads words."""
    for name in ("text_config", "text_encoder", "decoder", "llm_config", "language_config"):
        found = getattr(config, name, None)
        if getattr(found, "vocab_size", None) is not None:
            return found
    return config


def _vision_config(config: Any) -> Any:
    """The config of what reads images."""
    for name in ("vision_config", "encoder", "backbone_config", "vision_encoder_config", "image_encoder_config"):
        found = getattr(config, name, None)
        if any(getattr(found, key, None) is not None for key in ("image_size", "img_size", "num_channels")):
            return found
    return config


def _first(config: Any, names: Iterable[str], usual: Any) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), usual)


def _size(size: Any) -> tuple[int, int]:
    """Height and width, however a config writes them."""
    if isinstance(size, dict):
        size = (size.get("height", 224), size.get("width", 224))
    if isinstance(size, (tuple, list)):
        pair = [int(one) for one in size[-2:]]
        return (pair[0], pair[-1])
    return (int(size), int(size))


def first_that_runs(model: nn.Module, rows: int, run: Callable[[dict[str, Any]], Any]) -> tuple[dict[str, Any], Any]:
    """Return the first inputs with which ``run`` ends without an error, and what it returned.

    Args:
        model: Any model with a config.
        rows: B.
        run: Calls the model.

    Raises:
        ArchitectureError: None does; the message says why each failed. Errors of hfadapt's own end the search.
    """
    from ..errors import HFAdaptError

    failures: list[str] = []
    cause: Exception | None = None
    for inputs in candidate_inputs(model, rows):
        try:
            return inputs, run(inputs)
        except HFAdaptError:
            raise
        except Exception as error:  # any model may refuse made-up inputs in any way; the cause is kept
            cause = cause or error
            shapes = ", ".join(f"{name} {list(value.shape)}" for name, value in inputs.items())
            failures.append(f"{shapes}: {type(error).__name__}: {str(error)[:120]}")
    if not failures:
        example_inputs(model, rows)
    raise ArchitectureError(
        "the model could not be run on made-up inputs",
        where=type(model).__name__,
        got="; ".join(failures[:3]),
        allowed="a forward that ends without an error on small inputs by the names in its signature",
        try_="inputs of your own: hfadapt.probe(model, inputs={...})",
    ) from cause
