"""What ``use_kernels=True`` does to a model, without the package that loads kernels.

Each module of a class with a kernel gets another instance ``forward``, bound to it: one for training or one for
inference, chosen anew by every ``train()`` and ``eval()``. Where no kernel loads it gets its class's own, bound.
"""

from __future__ import annotations

import types

import torch.nn.functional as F
from torch import nn

#: The modes of the kernels that ran.
RAN: list[str] = []


def _norm(mode):
    def forward(self, hidden_states):
        RAN.append(mode)
        x = hidden_states.float()
        normed = x * (x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()
        return self.weight * normed.to(hidden_states.dtype)

    return forward


def swiglu(self, x):
    """A kernel for a whole MLP, which reads the weights of its linears."""
    gate, up = F.linear(x, self.gate_proj.weight), F.linear(x, self.up_proj.weight)
    return F.linear(F.silu(gate) * up, self.down_proj.weight)


NORMS = {True: _norm("training"), False: _norm("inference")}


def use_kernels(model: nn.Module, *more: str, load: bool = True) -> nn.Module:
    """Put kernels for norms into a model of Llama's, and one for whole MLPs if ``more`` names their class.

    Args:
        model: A model of transformers.
        more: Further classes that have a kernel: ``"LlamaMLP"``.
        load: Whether a kernel is found.
    """

    def switch(on, kernel_config=None, mode=None):
        for module in model.modules():
            kind = type(module)
            if kind.__name__ == "LlamaRMSNorm":
                module.forward = types.MethodType(NORMS[model.training] if load else kind.forward, module)
            elif kind.__name__ in more:
                module.forward = types.MethodType(swiglu if load else kind.forward, module)
        model._use_kernels = True

    model.set_use_kernels = switch
    switch(True)
    return model
