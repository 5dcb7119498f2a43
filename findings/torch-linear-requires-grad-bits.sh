#!/bin/sh
# torch 2.13.0 and 2.14.1: freezing a weight changes the bits that a Linear returns, under no_grad too.
#
# For an input of three dimensions that is not contiguous (as models that put time before the batch hand on), the product
# is folded into one of two dimensions or not; whether it is depends on requires_grad of the weight, also where no graph
# is built. The two sums round apart. "Frozen equals unfrozen" to the bit is hence no promise that can be held against a
# stock model whose weights still ask for gradients. Exit status 0: both releases still do.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"

for release in 2.13.0 2.14.1; do
    "$venv/bin/pip" install --quiet "torch==$release" numpy
    "$venv/bin/python" -W ignore - <<'PY'
import torch
from torch import nn

differ = {"time first": 0, "contiguous": 0}
for seed in range(20):
    torch.manual_seed(seed)
    layer = nn.Linear(32, 32)
    with torch.no_grad():
        for name, tokens in (("time first", torch.randn(3, 7, 32).transpose(0, 1)), ("contiguous", torch.randn(7, 3, 32))):
            layer.requires_grad_(True)
            asked = layer(tokens)
            layer.requires_grad_(False)
            differ[name] += not torch.equal(asked, layer(tokens))
print(f"torch {torch.__version__}: of 20 layers, outputs differ after requires_grad_(False):", differ)
assert differ == {"time first": 20, "contiguous": 0}, "torch changed, or this processor rounds both ways alike"
PY
done
