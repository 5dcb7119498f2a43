#!/bin/sh
# transformers 5.24.0: MRA without its CUDA kernel runs with attention of zeros, so that no token sees another.
#
# On a machine where the kernel is not there every layer's attention returns zeros in place of an error: a change of one
# token leaves all other positions as they were to the bit, and queries, keys and values get no gradient, so that training
# them (or adapters on them) does nothing. Exit status 0: transformers still does so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet transformers==5.24.0

"$venv/bin/python" -W ignore - <<'PY'
import torch
import transformers

print(f"torch {torch.__version__}, transformers {transformers.__version__}, cuda {torch.cuda.is_available()}")
torch.manual_seed(0)
config = transformers.MraConfig(
    vocab_size=50,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    max_position_embeddings=128,
    initializer_range=0.3,
)
model = transformers.MraModel(config).eval()
ids = torch.randint(5, 50, (1, 64))
other = ids.clone()
other[0, 10] = 5 + (ids[0, 10] + 1 - 5) % 45

one, two = (model(input_ids=each).last_hidden_state for each in (ids, other))
moved = (one != two).any(-1)[0].nonzero().flatten().tolist()
print(f"token 10 is another; positions whose hidden state changes: {moved}")
assert moved == [10], "transformers changed: tokens see one another"

one.square().sum().backward()
attention = model.encoder.layer[0].attention.self
sizes = {}
for name in ("query", "key", "value"):
    gradient = getattr(attention, name).weight.grad
    sizes[name] = 0.0 if gradient is None else gradient.abs().max().item()
print(f"largest gradients of the projections: {sizes}; of the feed-forward part: "
      f"{model.encoder.layer[0].intermediate.dense.weight.grad.abs().max().item():.3g}")
assert not any(sizes.values()), f"transformers changed: {sizes}"
PY
