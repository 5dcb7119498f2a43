#!/bin/sh
# peft 0.21.2: add_weighted_adapter(combination_type="cat") of two rslora adapters is not their weighted sum.
#
# Joining the matrices gives the sum exactly, and does for plain LoRA: the new adapter's alpha is its rank, so that nothing
# scales it again. With use_rslora it inherits the flag, under which that alpha is a factor of the root of the rank: twice
# rank 4 gives an update 2.8 times too large, without a word. Exit status 0: peft still does so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet transformers==5.24.0 peft==0.21.2

"$venv/bin/python" -W ignore - <<'PY'
import peft
import torch
import transformers

print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
config = transformers.BertConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50
)
off = {}
for rslora in (False, True):
    torch.manual_seed(0)
    lora = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["query"], init_lora_weights=False, use_rslora=rslora)
    model = peft.get_peft_model(transformers.BertModel(config), lora, "a")
    model.add_adapter("b", lora)
    model.add_weighted_adapter(["a", "b"], [0.7, 0.3], "sum", combination_type="cat")
    layer = model.get_submodule("base_model.model.encoder.layer.0.attention.self.query")
    with torch.no_grad():
        wanted = 0.7 * layer.get_delta_weight("a") + 0.3 * layer.get_delta_weight("b")
        off[rslora] = float((layer.get_delta_weight("sum") - wanted).norm() / wanted.norm())
    print(f"use_rslora={rslora!s:5}: off by {off[rslora]:.2g} of the weighted sum's norm")
assert off[False] < 1e-6, off
assert 1.8 < off[True] < 1.9, f"peft changed: {off}"
PY
