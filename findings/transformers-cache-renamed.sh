#!/bin/sh
# transformers 5.24.0 hands a model's layers their key-value cache as `cache`; 5.23.0 did as `past_key_values`.
#
# The caller's side is kept: a model takes either name and warns. The inner side is not. A forward hook on a layer that
# reads kwargs["past_key_values"] was right on 5.23.0 and finds nothing on 5.24.0, even where the caller used that very
# name; kwargs.get goes on as if nothing were cached. Exit status 0: both releases still do so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0

for release in 5.23.0 5.24.0; do
    "$venv/bin/pip" install --quiet "transformers==$release"
    "$venv/bin/python" -W ignore - <<'PY'
import torch
import transformers

config = transformers.GPT2Config(
    n_embd=32, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
)
model = transformers.GPT2LMHeadModel(config).eval()
seen = {}


def look(module, args, kwargs):
    seen.update({name: value for name, value in kwargs.items() if isinstance(value, transformers.Cache)})


model.transformer.h[0].attn.register_forward_pre_hook(look, with_kwargs=True)
with torch.no_grad():
    outputs = model(
        torch.arange(4).view(1, 4), past_key_values=transformers.DynamicCache(config=config), use_cache=True
    )
print(
    f"torch {torch.__version__}, transformers {transformers.__version__}: "
    f"the attention layer's arguments of type Cache: {list(seen)}; the model's outputs: {list(outputs.keys())}"
)
name = {"5.23.0": "past_key_values", "5.24.0": "cache"}[transformers.__version__]
assert list(seen) == [name] and name in outputs.keys(), "transformers changed"
PY
done
