"""The fork of the unified view (He et al. 2022) as formulas: BART and mBART with every option, in plain tensor algebra.

A second reading: the layers are written out here, without transformers and without
hfadapt, so that what the goldens do not hold (mBART) can be computed. On BART it must equal the goldens.
`layout` gives the names and shapes of the weights that the fork adds.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

HIDDEN, HEADS, LAYERS, FFN, EPS = 24, 4, 2, 40, 1e-5
ATTENTIONS = (
    ("encoder", "self_attn", "encoder"),
    ("decoder", "self_attn", "self"),
    ("decoder", "encoder_attn", "cross"),
)
_NETWORKS = {"encoder": "_enc", "self": "", "cross": "2"}
_FLAT = {"encoder": "encoder_attn", "self": "decoder_self_attn", "cross": "decoder_cross_attn"}


def layout(options: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every weight that the fork adds to BART or mBART for these options."""
    shapes: dict[str, tuple[int, ...]] = {}
    mode, length, width = options["attn_mode"], options["attn_bn"], options["ffn_bn"]
    for layer in range(LAYERS):
        for stack, attention, kind in ATTENTIONS:
            owner = f"model.{stack}.layers.{layer}.{attention}"
            if mode == "adapter":
                shapes |= _adapter(f"{owner}.ef_attn_adapter", length, norm=True)
            elif mode == "lora":
                for which in ("q_proj", "v_proj"):
                    shapes |= _lora(f"{owner}.{which}", length, HIDDEN, HIDDEN)
            elif mode == "prefix_nomlp":
                for side in ("key", "value"):
                    shapes[f"prompt_model.{_FLAT[kind]}_{side}.{layer}.weight"] = (length, HIDDEN)
            elif mode == "prefix" and options["attn_option"] in ("cross_attn", "cross_attn_relu"):
                shapes |= {f"{owner}.ef_transform_layer_norm.{part}": (HIDDEN,) for part in ("weight", "bias")}
        for stack in ("encoder", "decoder"):
            owner = f"model.{stack}.layers.{layer}"
            if options["ffn_mode"] == "adapter":
                normed = options["ffn_adapter_layernorm_option"] == "in"
                shapes |= _adapter(f"{owner}.ef_ffn_adapter", width, norm=normed)
                if options["ffn_adapter_scalar"] == "learnable_scalar":
                    shapes[f"{owner}.ef_ffn_adapter.scale"] = (1,)
            elif options["ffn_mode"] == "lora":
                shapes |= _lora(f"{owner}.fc1", width, HIDDEN, FFN) | _lora(f"{owner}.fc2", width, FFN, HIDDEN)
    if mode == "prefix":
        middle, made = options["mid_dim"], LAYERS * 2 * HIDDEN
        for end in _NETWORKS.values():
            shapes[f"prompt_model.wte{end}.weight"] = (length, HIDDEN)
            shapes |= _linear(f"prompt_model.control_trans{end}.0", HIDDEN, middle)
            shapes |= _linear(f"prompt_model.control_trans{end}.2", middle, made)
    return shapes


def _linear(name: str, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _adapter(name: str, width: int, norm: bool) -> dict[str, tuple[int, ...]]:
    shapes = _linear(f"{name}.down_proj", HIDDEN, width) | _linear(f"{name}.up_proj", width, HIDDEN)
    if norm:
        shapes |= {f"{name}.adapter_layer_norm_before.{part}": (HIDDEN,) for part in ("weight", "bias")}
    return shapes


def _lora(name: str, rank: int, inputs: int, outputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.ef_lora_A": (rank, inputs), f"{name}.ef_lora_B": (outputs, rank)}


class Formula:
    """BART (``pre_norm=False``) or mBART with the fork's options.

    Args:
        weights: Base and new weights by the fork's names.
        options: The fork's options.
        pre_norm: mBART: a norm before each sub-layer and at the end of each stack, embeddings times the root of D,
            and queries of ``cross_attn_relu`` as the attention's own, scaled.
    """

    def __init__(self, weights: dict[str, Tensor], options: dict[str, Any], pre_norm: bool) -> None:
        self.weights, self.options, self.pre_norm = weights, options, pre_norm

    def __call__(self, ids: Tensor, mask: Tensor, decoder_ids: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Hidden states of both stacks, logits and loss, by the names of the goldens."""
        outputs: dict[str, Tensor] = {}
        steps = torch.ones(decoder_ids.shape[1], decoder_ids.shape[1], dtype=torch.bool).tril()
        state = self._stack("encoder", ids, mask[:, None, None, :].bool(), None, None, outputs)
        state = self._stack("decoder", decoder_ids, steps[None, None], state, mask[:, None, None, :].bool(), outputs)
        outputs["logits"] = state @ self.weights["model.shared.weight"].T
        outputs["loss"] = F.cross_entropy(outputs["logits"].flatten(0, 1), labels.flatten()).view(1)
        return outputs

    def _stack(
        self, stack: str, ids: Tensor, mask: Tensor, memory: Tensor | None, memory_mask: Any, outputs: dict[str, Tensor]
    ) -> Tensor:
        scale = math.sqrt(HIDDEN) if self.pre_norm else 1.0
        positions = self.weights[f"model.{stack}.embed_positions.weight"][2 : 2 + ids.shape[1]]
        h = self._norm(
            f"model.{stack}.layernorm_embedding", self.weights["model.shared.weight"][ids] * scale + positions
        )
        short = stack[:3]
        outputs[f"{short}_hidden.0"] = h
        for layer in range(LAYERS):
            owner = f"model.{stack}.layers.{layer}"
            kind = "encoder" if stack == "encoder" else "self"
            norm = f"{owner}.self_attn_layer_norm"
            h = self._sublayer(
                h, norm, lambda x, o=owner, k=kind, n=layer: self._attention(x, x, mask, o, "self_attn", k, n)
            )
            if memory is not None:
                norm = f"{owner}.encoder_attn_layer_norm"
                h = self._sublayer(
                    h,
                    norm,
                    lambda x, o=owner, n=layer: self._attention(x, memory, memory_mask, o, "encoder_attn", "cross", n),
                )
            residual = h
            h = self._sublayer(h, f"{owner}.final_layer_norm", lambda x, o=owner, r=residual: self._ffn(x, r, o))
            outputs[f"{short}_hidden.{layer + 1}"] = h
        if self.pre_norm:
            h = self._norm(f"model.{stack}.layer_norm", h)
            outputs[f"{short}_hidden.{LAYERS}"] = h
        return h

    def _sublayer(self, h: Tensor, norm: str, change: Any) -> Tensor:
        return h + change(self._norm(norm, h)) if self.pre_norm else self._norm(norm, h + change(h))

    def _norm(self, name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPS)

    def _linear(self, name: str, x: Tensor, alpha_over: int | None = None) -> Tensor:
        out = F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])
        if alpha_over is None:
            return out
        low = x @ self.weights[f"{name}.ef_lora_A"].T @ self.weights[f"{name}.ef_lora_B"].T
        return out + self.options["lora_alpha"] / alpha_over * low

    def _adapter(self, name: str, x: Tensor, scale: Tensor | float = 1.0) -> Tensor:
        if f"{name}.adapter_layer_norm_before.weight" in self.weights:
            x = self._norm(f"{name}.adapter_layer_norm_before", x)
        return scale * self._linear(f"{name}.up_proj", torch.relu(self._linear(f"{name}.down_proj", x)))

    def _prefix(self, kind: str, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values ``[H, P, K]``."""
        if self.options["attn_mode"] == "prefix_nomlp":
            pair = [self.weights[f"prompt_model.{_FLAT[kind]}_{side}.{layer}.weight"] for side in ("key", "value")]
        else:
            end = _NETWORKS[kind]
            inner = torch.tanh(
                self._linear(f"prompt_model.control_trans{end}.0", self.weights[f"prompt_model.wte{end}.weight"])
            )
            made = self._linear(f"prompt_model.control_trans{end}.2", inner).unflatten(-1, (LAYERS, 2, HIDDEN))
            pair = [made[:, layer, 0], made[:, layer, 1]]
        return pair[0].unflatten(-1, (HEADS, -1)).transpose(0, 1), pair[1].unflatten(-1, (HEADS, -1)).transpose(0, 1)

    def _attention(
        self, x: Tensor, memory: Tensor, mask: Tensor, owner: str, name: str, kind: str, layer: int
    ) -> Tensor:
        o, owner = self.options, f"{owner}.{name}"
        rank = o["attn_bn"] if o["attn_mode"] == "lora" else None

        def heads(t: Tensor) -> Tensor:
            return t.unflatten(-1, (HEADS, -1)).transpose(1, 2)

        root = math.sqrt(HIDDEN // HEADS)
        q = heads(self._linear(f"{owner}.q_proj", x, rank)) / root
        k, v = heads(self._linear(f"{owner}.k_proj", memory)), heads(self._linear(f"{owner}.v_proj", memory, rank))
        scores = (q @ k.transpose(-1, -2)).masked_fill(~mask, -math.inf)
        if not o["attn_mode"].startswith("prefix"):
            out = torch.softmax(scores, -1) @ v
        else:
            pk, pv = self._prefix(kind, layer)
            own = q @ pk.transpose(-1, -2)
            if o["attn_composition"] == "gate_add":
                gate = torch.exp(own.logsumexp(-1) - torch.cat([own, scores], -1).logsumexp(-1)).unsqueeze(-1)
                out = (1 - gate) * (torch.softmax(scores, -1) @ v) + gate * (torch.softmax(own, -1) @ pv)
            elif o["attn_option"] == "concat":
                weights = torch.softmax(torch.cat([own, scores], -1), -1)
                out = weights[..., : pk.shape[1]] @ pv + weights[..., pk.shape[1] :] @ v
            elif o["attn_option"] == "cross_attn_noln":
                out = torch.softmax(scores, -1) @ v + torch.softmax(own, -1) @ pv
            else:
                if not self.pre_norm:  # BART alone has a norm of its own there, and does not scale
                    own = heads(self._linear(f"{owner}.q_proj", self._norm(f"{owner}.ef_transform_layer_norm", x)))
                    own = own @ pk.transpose(-1, -2)
                out = torch.softmax(scores, -1) @ v + torch.relu(own) @ pv
        out = out.transpose(1, 2).flatten(2)
        if o["attn_mode"] == "adapter" and o["attn_option"] == "parallel":
            out = out + self._adapter(f"{owner}.ef_attn_adapter", x)
        out = self._linear(f"{owner}.out_proj", out)
        if o["attn_mode"] == "adapter" and o["attn_option"] == "sequential":
            out = out + self._adapter(f"{owner}.ef_attn_adapter", out)
        return out

    def _ffn(self, x: Tensor, residual: Tensor, owner: str) -> Tensor:
        o = self.options
        rank = o["ffn_bn"] if o["ffn_mode"] == "lora" else None
        f = self._linear(f"{owner}.fc2", F.gelu(self._linear(f"{owner}.fc1", x, rank)), rank)
        if o["ffn_mode"] != "adapter":
            return f
        name, scale = f"{owner}.ef_ffn_adapter", o["ffn_adapter_scalar"]
        scale = self.weights[f"{name}.scale"] if scale == "learnable_scalar" else float(scale)
        if o["ffn_option"] == "parallel":  # reads the residual stream, which a pre-norm has not touched
            return f + self._adapter(name, residual, scale)
        if o["ffn_option"] == "sequential":
            return f + self._adapter(name, f)
        total = residual + f
        return f + self._adapter(name, total if self.pre_norm else self._norm(f"{owner}.final_layer_norm", total))


__all__ = ["Formula", "layout"]
