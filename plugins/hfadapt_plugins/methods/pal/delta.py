"""The task function of projected attention layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from hfadapt import Delta, Rows, Site, Weights
from hfadapt.architecture import LayerMap
from hfadapt_kernels import draw_seed, get_activation, pal_attention, row_linear, rowwise

from ..shared import change_rows, init_projection
from ..shared.attention import attend
from ..shared.dropout import RowDropout
from ..shared.mask import attention_mask
from ..shared.memory import Memory, memory_of
from ..shared.norms import add_norm, keep_without_adapter, norm_eps, over_tokens, own_norm
from .config import PAL

__all__ = ["INNER", "PALAttentionDelta", "PALFFNDelta", "SharedEnds"]

INNER = ("query", "key", "value")


def _add_ends(module: nn.Module, config: PAL, width: int) -> None:
    """Give ``module`` V_E ``[S, D]``, V_D ``[D, S]`` and their biases."""
    module.encoder = nn.Parameter(torch.empty(config.size, width))
    module.decoder = nn.Parameter(torch.zeros(width, config.size))
    init_projection(module.encoder.data)
    if config.init == "normal":
        init_projection(module.decoder.data)
    if config.bias:
        module.encoder_bias = nn.Parameter(torch.zeros(config.size))
        module.decoder_bias = nn.Parameter(torch.zeros(width))


class SharedEnds(nn.Module):
    """V_E and V_D of one task: one pair for each stack of the model, shared by the layers of the stack.

    A stack whose layers are of several widths (LeViT's stages) has a pair for each.
    """

    def __init__(self, config: PAL, layers: Sequence[LayerMap]) -> None:
        super().__init__()
        self.stacks = nn.ModuleDict()
        usual: dict[str, int] = {}
        for layer in layers:
            path, width = layer.stack.path, layer.stack.hidden_size
            key = _key(path) if usual.setdefault(path, width) == width else _key_of_width(path, width)
            if key not in self.stacks:
                ends = nn.Module()
                _add_ends(ends, config, width)
                self.stacks[key] = ends

    def weights_of(self, site: Site) -> nn.Module:
        """Return the pair that serves ``site``."""
        other = _key_of_width(site.stack, site.width)
        return self.stacks[other if other in self.stacks else _key(site.stack)]


def _key(path: str) -> str:
    return path.replace(".", "_")


def _key_of_width(path: str, width: int) -> str:
    """Of layers that are not as wide as the first of their stack."""
    return f"{_key(path)}__{width}"


class _PALDelta(Delta):
    """V_E and V_D, of the layer's own or shared by the layers of the task."""

    def ends(self, attribute: str, names: Sequence[str]) -> list[Tensor] | None:
        """Return V_E, V_D or one of their biases, of each adapter, or None where there are no biases."""
        found = [
            getattr(self._shared[n].weights_of(self.site) if n in self._shared else self.own(n), attribute, None)
            for n in names
        ]
        return [tensor for tensor in found if tensor is not None] or None

    def projections(self, attribute: str, names: Sequence[str]) -> list[Tensor]:
        """Return V_E (``encoder``) or V_D (``decoder``) of each adapter, which none lacks."""
        found = self.ends(attribute, names)
        assert found is not None
        return found

    def init_weights(self, weights: Weights, config: PAL, shared: nn.Module | None) -> None:
        if shared is None:
            _add_ends(weights, config, self.site.width)
        self.dropout = config.dropout  # part of the variant, so the same for every adapter here
        self.init_inner(weights, config)
        if config.lhuc:
            weights.lhuc = self.parameter((self.site.width,))
        if config.position == "serial":
            add_norm(weights, "norm", self.site.width)

    def forward(self, value: Tensor, source: Tensor, rows: Rows) -> Tensor:
        config: PAL = self.config(rows.names[0])
        # The parts of an image [B, height, width, D] are its tokens.
        tokens = source.flatten(1, -2) if source.dim() > 3 else source
        change = self.task_function(tokens, rows, config).view(source.shape)
        if config.lhuc:
            change = change * over_tokens(2 * torch.sigmoid(rows.gather(self.weights("lhuc", rows.names), 0.0)), change)
        if config.position != "serial":
            return value + change
        weights, biases = self.weights("norm_weight", rows.names), self.weights("norm_bias", rows.names)
        return keep_without_adapter(rows, own_norm(value + change, weights, biases, rows, norm_eps(rows.leaf)), value)

    def task_function(self, source: Tensor, rows: Rows, config: PAL) -> Tensor:
        """Return TS(source) ``[B, T, D]``, zeros in rows without an adapter."""
        raise NotImplementedError

    def init_inner(self, weights: Weights, config: PAL) -> None:
        """Create the parameters of g."""
        raise NotImplementedError


class PALAttentionDelta(_PALDelta):
    """``TS(x) = act(V_D MHA(V_E x))``, every row with its own adapter, in one kernel."""

    def init_inner(self, weights: Weights, config: PAL) -> None:
        for name in INNER:
            setattr(weights, name, self.parameter((config.size, config.size), init_projection))
            if config.bias:
                setattr(weights, f"{name}_bias", self.parameter((config.size,)))

    def task_function(self, source: Tensor, rows: Rows, config: PAL) -> Tensor:
        memory = memory_of(rows, self.site, source)
        if memory is not None:
            return self.decode(source, rows, config, memory)
        names = rows.names
        return pal_attention(
            source,
            self.projections("encoder", names),
            self.projections("decoder", names),
            self.weights("query", names),
            self.weights("key", names),
            self.weights("value", names),
            rows.batch,
            num_heads=config.num_heads,
            encoder_bias=self.ends("encoder_bias", names),
            decoder_bias=self.ends("decoder_bias", names),
            query_bias=self.optional_weights("query_bias", names),
            key_bias=self.optional_weights("key_bias", names),
            value_bias=self.optional_weights("value_bias", names),
            mask=attention_mask(rows, source, self.site),
            causal=self.site.causal,
            activation=config.activation,
            dropout=self.dropout,
            training=self.training,
        )

    def decode(self, source: Tensor, rows: Rows, config: PAL, memory: Memory) -> Tensor:
        """Return TS of the new tokens ``source`` ``[B, T, D]``, which attend to what ``memory`` holds as well."""
        names, act = rows.names, get_activation(config.activation).fn
        ends = {name: self.ends(name, names) for name in ("encoder", "encoder_bias", "decoder", "decoder_bias")}
        places = torch.arange(source.shape[0], device=source.device)
        seed = draw_seed(source.device) if self.training and self.dropout else None

        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            first, first_bias, last, last_bias = (None if e is None else e[index] for e in ends.values())
            assert first is not None and last is not None
            own, kept = self.own(names[index]), memory.own(index, pick)
            z = row_linear(pick(source), first, first_bias)
            query, key, value = (row_linear(z, getattr(own, n), getattr(own, f"{n}_bias", None)) for n in INNER)
            key, value = kept.extend("self", key, value)
            drop = None if seed is None else RowDropout(seed, pick(places)).with_probability(self.dropout)
            mixed = attend(query, key, value, config.num_heads, kept.seen, drop=drop)
            return rowwise(act, row_linear(mixed, last, last_bias))

        change = change_rows(rows.batch, torch.zeros_like(source), compute)
        memory.keep()
        return change


class PALFFNDelta(_PALDelta):
    """``TS(x) = act(V_D (W_2 a(W_1 V_E x)))``."""

    def init_inner(self, weights: Weights, config: PAL) -> None:
        weights.inner = self.parameter((config.hidden, config.size), init_projection)
        weights.outer = self.parameter((config.size, config.hidden), init_projection)
        if config.bias:
            weights.inner_bias = self.parameter((config.hidden,))
            weights.outer_bias = self.parameter((config.size,))

    def task_function(self, source: Tensor, rows: Rows, config: PAL) -> Tensor:
        names = rows.names
        inner, outer = get_activation(config.inner_activation).fn, get_activation(config.activation).fn
        encoder, decoder = (self.projections(name, names) for name in ("encoder", "decoder"))
        biases = [self.ends(name, names) for name in ("encoder_bias", "decoder_bias")]

        def compute(index: int, pick: Callable[[Tensor], Tensor]) -> Tensor:
            w = self.own(names[index])
            before, after = (None if bias is None else bias[index] for bias in biases)
            z = row_linear(pick(source), encoder[index], before)
            z = rowwise(inner, row_linear(z, w.inner, getattr(w, "inner_bias", None)))
            z = row_linear(z, w.outer, getattr(w, "outer_bias", None))
            return rowwise(outer, row_linear(z, decoder[index], after))

        return change_rows(rows.batch, torch.zeros_like(source), compute)
