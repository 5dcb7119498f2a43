"""What a forward takes beside its main input: boxes of words, grids of patches, masks, features of other models.

Each is made for one name, from the config and from the inputs that there are already.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["add_companions", "patches", "series"]

_GRID = 4
_STATES = 6
_BINS = ("num_mel_bins", "feature_size", "input_feat_size", "feature_projection_input_dim", "input_dim")


def add_companions(
    model: nn.Module, given: Mapping[str, Tensor], rows: int, stream: torch.Generator
) -> Iterator[dict[str, Tensor]]:
    """Yield inputs with what the forward requires beside them, and then with all that is known to go with them.

    Args:
        model: Any model with a config.
        given: Its main inputs.
        rows: B.
        stream: Of the numbers.
    """
    parameters = inspect.signature(model.forward).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty]
    maker = _Companions(model.config, rows, stream)
    first = maker.add(given, [name for name in required if name in _MAKERS])
    yield first
    every = maker.add(given, [name for name in parameters if name in _MAKERS])
    if every.keys() != first.keys():
        yield every


def patches(config: Any, rows: int, stream: torch.Generator) -> Iterator[Tensor]:
    """Yield the patches of images of 4 by 4, one image a row, in the forms that models with a grid read them.

    Args:
        config: Names the channels, the patch size, and how many frames a patch has.
        rows: Images.
        stream: Of the numbers.
    """
    channels, size = _first(config, ("in_channels", "num_channels"), 3), _first(config, ("patch_size",), 14)
    frames, count = _first(config, ("temporal_patch_size",), 1), rows * _GRID**2
    for shape in ((channels * frames * size**2,), (channels, size, size), (channels * 2 * size**2,)):
        yield torch.randn(count, *shape, generator=stream)


def series(config: Any, rows: int, stream: torch.Generator) -> Iterator[Tensor]:
    """Yield time series as long as the config says, with its lags, of its channels or of none.

    Args:
        config: Names the length of the context, and lags and channels where there are any.
        rows: B.
        stream: Of the numbers.
    """
    length = _first(config, ("context_length", "prediction_length"), 32) + max(getattr(config, "lags_sequence", (0,)))
    channels = getattr(config, "num_input_channels", None)
    for shape in ((length,) if channels is None else (length, channels), (length, 1)):
        yield torch.randn(rows, *shape, generator=stream)


class _Companions:
    def __init__(self, config: Any, rows: int, stream: torch.Generator) -> None:
        self.config = config
        self.rows = rows
        self.stream = stream

    def add(self, given: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
        """The inputs and those of these names that can be made."""
        found = dict(given)
        for name in names:
            if name not in found and (value := _MAKERS[name](self, found)) is not None:
                found[name] = value
        return found

    def noise(self, *shape: int) -> Tensor:
        return torch.randn(self.rows, *shape, generator=self.stream)

    def width(self, *names: str) -> int:
        return int(_first(self.config, (*names, "hidden_size", "d_model"), 32))

    def boxes(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Boxes ``[B, T, 4]`` of words, the upper left corner before the lower right one."""
        words = given.get("input_ids")
        if words is None:
            return None
        corner = torch.randint(0, 10, (*words.shape, 2), generator=self.stream)
        return torch.cat([corner, corner + 5], -1)

    def grid(self, _: Mapping[str, Tensor]) -> Tensor:
        """Frames, height and width of every image, ``[B, 3]``."""
        return torch.tensor([[1, _GRID, _GRID]] * self.rows)

    def heights(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Height and width in patches of what is ``[B, patches, values]``, ``[B, 2]``."""
        image = given.get("pixel_values")
        return None if image is None or image.dim() != 3 else torch.tensor([[_GRID, _GRID]] * self.rows)

    def patch_mask(self, given: Mapping[str, Tensor]) -> Tensor | None:
        image = given.get("pixel_values")
        return None if image is None or image.dim() != 3 else torch.ones(image.shape[:2], dtype=torch.long)

    def places(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Column and row of every patch, ``[B, patches, 2]``."""
        if self.patch_mask(given) is None:
            return None
        across, down = torch.meshgrid(torch.arange(_GRID), torch.arange(_GRID), indexing="xy")
        return torch.stack([across.flatten(), down.flatten()], -1).expand(self.rows, -1, -1).contiguous()

    def frames_mask(self, given: Mapping[str, Tensor]) -> Tensor | None:
        """Ones for every frame of a spectrogram, ``[B, frames]``, whichever way round it stands."""
        heard = given.get("input_features")
        if heard is None or heard.dim() != 3:
            return None
        bins = _first(self.config, _BINS, 80)
        return torch.ones(self.rows, heard.shape[1] if heard.shape[2] == bins else heard.shape[2], dtype=torch.long)

    def like(self, name: str) -> Callable[[Mapping[str, Tensor]], Tensor | None]:
        """As another input is."""
        return lambda given: torch.randn(given[name].shape, generator=self.stream) if name in given else None


def _states(*widths: str) -> Callable[[_Companions, Mapping[str, Tensor]], Tensor]:
    return lambda maker, _: maker.noise(_STATES, maker.width(*widths))


def _words(count: int) -> Callable[[_Companions, Mapping[str, Tensor]], Tensor]:
    return lambda maker, _: torch.randint(3, 90, (maker.rows, count), generator=maker.stream)


_MAKERS: dict[str, Callable[[_Companions, Mapping[str, Tensor]], Tensor | None]] = {
    "bbox": _Companions.boxes,
    "grid_thw": _Companions.grid,
    "image_grid_thw": lambda maker, given: maker.grid(given) if "input_ids" not in given else None,
    "merge_sizes": lambda maker, _: torch.full((maker.rows,), _first(maker.config, ("spatial_merge_size",), 1)),
    "spatial_shapes": _Companions.heights,
    "target_sizes": _Companions.heights,
    "pixel_attention_mask": _Companions.patch_mask,
    "pixel_position_ids": _Companions.places,
    "input_features_mask": _Companions.frames_mask,
    "visual_feats": _states("visual_feat_dim"),
    "visual_pos": lambda maker, _: torch.rand(maker.rows, _STATES, 4, generator=maker.stream),
    "query_embeds": _states(),
    "encoder_hidden_states": _states("encoder_hidden_size", "cross_attention_hidden_size"),
    "noise_embeds": _states(),
    "context_hidden_states": _states(),
    "qformer_input_ids": _words(5),
    "task_inputs": lambda maker, given: _words(_first(maker.config, ("task_seq_len",), 77))(maker, given),
    "prompt_pixel_values": lambda maker, given: maker.like("pixel_values")(given),
    "prompt_masks": lambda maker, given: maker.like("pixel_values")(given),
    "past_time_features": lambda maker, given: maker.noise(
        given["past_values"].shape[1], getattr(maker.config, "num_time_features", 0)
    ),
    "future_time_features": lambda maker, _: maker.noise(
        _first(maker.config, ("prediction_length",), 4), getattr(maker.config, "num_time_features", 0)
    ),
    "past_observed_mask": lambda _, given: torch.ones_like(given["past_values"]),
    "past_values_padding": lambda _, given: torch.zeros_like(given["past_values"]),
    "freq": lambda maker, _: torch.zeros(maker.rows, 1, dtype=torch.long),
}


def _first(config: Any, names: tuple[str, ...], usual: Any) -> Any:
    return next((value for name in names if (value := getattr(config, name, None)) is not None), usual)
