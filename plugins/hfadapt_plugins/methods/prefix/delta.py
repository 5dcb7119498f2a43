"""The prefixes of one attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hfadapt import AttentionCall, AttentionDelta, Rows, Weights
from hfadapt.errors import RoutingError
from hfadapt_kernels import TaskBatch, draw_seed, drop_rows

from ..shared.gating import add_gate, gate_of_rows
from .attend import Part, PrefixAttention
from .behind import distance_biases

if TYPE_CHECKING:
    from .tables import PrefixTables

__all__ = ["PrefixDelta"]


class PrefixDelta(AttentionDelta):
    """Trained keys and values in front of a row's own.

    Weights of a flat adapter: ``prefix_key`` and ``prefix_value`` ``[G, P, K]``. Those of a reparametrised one come
    from the networks that its layers share.
    """

    def init_weights(self, weights: Weights, config: Any, shared: nn.Module | None) -> None:
        if config.reparametrization == "flat":
            widths = {"prefix_key": self.site.width, "prefix_value": self.site.value_width or self.site.width}
            for name, width in widths.items():
                shape = (self.site.kv_heads, config.num_virtual_tokens, width)
                setattr(weights, name, self.parameter(shape, lambda t: nn.init.normal_(t, std=config.init_std)))
        if config.query_norm:
            weights.norm_weight = self.parameter((self.site.read_width,), nn.init.ones_)
            weights.norm_bias = self.parameter((self.site.read_width,))
        if config.gate != "none":
            add_gate(self, weights, self.site.read_width)

    def prefixes(self, name: str, prepared: dict[Any, Any]) -> tuple[Tensor, Tensor]:
        """Return the keys and values ``[G, P, K]`` of one adapter.

        Args:
            name: The adapter.
            prepared: ``Routing.prepared``, where a reparametrised adapter's tables are.
        """
        config = self.config(name)
        if config.reparametrization == "flat":
            inside = self.own(name)
            return inside.prefix_key, inside.prefix_value
        tables: PrefixTables = self.shared(name)
        return tables.pick(prepared[(name, config.method)], self.site)

    def forward(  # type: ignore[override]
        self, call: AttentionCall, rows: Rows, proceed: Callable[[], tuple[Tensor, Tensor | None]]
    ) -> tuple[Tensor, Tensor | None]:
        """Add this adapter method's prefixes to the call, and let the rest of the chain run."""
        part = self.part(call, rows)
        stock = call.stock
        if not isinstance(stock, PrefixAttention):
            stock = PrefixAttention(stock, call.name, rows.routing.attentions, call.draws)
        call.stock = stock.with_part(part)
        return proceed()

    def part(self, call: AttentionCall, rows: Rows) -> Part:
        """What this call attends to besides its keys."""
        config = self.config(rows.names[0])
        pairs = [self.prefixes(name, rows.routing.prepared) for name in rows.names]
        keys, values = [k for k, _ in pairs], [v for _, v in pairs]
        drop = config.dropout
        if drop and self.training:
            keys, values = self.dropped(keys, values, drop)
        if config.query_norm:
            return Part(keys, values, rows.batch, config.form, self.normed_query(call, rows))
        bias = rest = None
        if config.tokens != "apart" and self.site.slot == "attention_core":
            lengths = [key.shape[1] for key in keys]
            self.check_window(call, max(lengths))
            bias, rest = distance_biases(call, rows, self.site.stack, config, lengths)
        if config.gate == "none":
            return Part(keys, values, rows.batch, config.form, bias=bias, rest=rest)
        if bias is not None:  # each row has a prefix of its own then
            tasks = [max(i, 0) for i in rows.batch.ids.tolist()]
            bias, rest = ([side[t] for t in tasks] if side else None for side in (bias, rest))
        return replace(self.gated(keys, values, rows, config.form), bias=bias, rest=rest)

    def check_window(self, call: AttentionCall, length: int) -> None:
        """Raise ``RoutingError`` where a prefix that stands among the positions leaves a sliding window."""
        window = call.options.get("sliding_window")
        if window is not None and call.key.shape[2] + length > window:
            raise RoutingError(
                "the prefix leaves the window of tokens that the model sees, among whose positions it stands",
                where=self.site.leaf,
                got=f"{call.key.shape[2]} tokens behind a prefix of {length}",
                allowed=f"{window} together",
                try_="shorter inputs; or a prefix with tokens='apart', which every token sees",
            )

    def dropped(self, keys: list[Tensor], values: list[Tensor], p: float) -> tuple[list[Tensor], list[Tensor]]:
        """Prefixes with entries dropped: the masks do not depend on which adapters have rows."""
        seed = draw_seed(keys[0].device)

        def one(tensor: Tensor, stream: int) -> Tensor:
            return drop_rows(tensor, p, seed, torch.arange(tensor.shape[0], device=tensor.device), stream)

        return [one(t, 0) for t in keys], [one(t, 1) for t in values]

    def gated(self, keys: list[Tensor], values: list[Tensor], rows: Rows, form: str) -> Part:
        """Prefixes times their row's gate: every row gets a prefix of its own."""
        gates = gate_of_rows(self, self.read(rows), rows).view(-1, 1, 1, 1)
        ids = rows.batch.ids
        if len({k.shape for k in keys}) == 1:
            chosen = ids.clamp_min(0)
            keys, values = (list((torch.stack(side)[chosen] * gates).unbind(0)) for side in (keys, values))
        else:
            tasks = [max(i, 0) for i in ids.tolist()]
            keys, values = ([side[t] * g for t, g in zip(tasks, gates, strict=True)] for side in (keys, values))
        each = torch.arange(ids.shape[0], device=ids.device)
        return Part(keys, values, TaskBatch.from_ids(torch.where(ids < 0, -1, each), ids.shape[0]), form)

    def read(self, rows: Rows) -> Tensor:
        """The attention input ``[B, T, D]``."""
        assert self.site.source is not None
        return rows.routing.taps[self.site.source.key]

    def normed_query(self, call: AttentionCall, rows: Rows) -> Tensor:
        """``W_q LN(x)`` ``[B, H, T, K]`` with the trained norm of each row's adapter."""
        assert self.site.source is not None
        path = self.site.source.leaf
        query = rows.leaf.get_submodule(path.removeprefix(self.site.leaf).lstrip("."))
        x = self.read(rows)
        # In the dtype of the trained norm, which a base of lower precision reads again.
        x = nn.functional.layer_norm(x.to(self.own(rows.names[0]).norm_weight.dtype), x.shape[-1:], eps=1e-5)
        gain = rows.gather(self.weights("norm_weight", rows.names), 1.0).unsqueeze(1)
        shift = rows.gather(self.weights("norm_bias", rows.names), 0.0).unsqueeze(1)
        weight, bias = query.get_parameter("weight"), getattr(query, "bias", None)
        made = nn.functional.linear((x * gain + shift).to(weight.dtype), weight, bias)
        return made.unflatten(-1, (call.query.shape[1], -1)).transpose(1, 2)
