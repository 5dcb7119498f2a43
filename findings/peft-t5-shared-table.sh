#!/bin/sh
# peft 0.21.2 on transformers 5.24.0: a LoRA of T5's table of words, `shared`, trains nothing and changes nothing.
#
# Encoder and decoder look words up in modules of their own, whose weight is tied to that of `shared`; the module that
# peft wraps is never called. Neither get_peft_model nor the first pass says so, and the adapter's parameters count as
# trainable. Exit status 0: the outputs are still those of the base, and no gradient comes.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0 numpy transformers==5.24.0 peft==0.21.2

"$venv/bin/python" -W ignore - <<'PY'
import torch
from peft import LoraConfig, get_peft_model
from transformers import T5Config, T5ForConditionalGeneration

torch.manual_seed(0)
sizes = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
config = T5Config(**sizes, dropout_rate=0.0, decoder_start_token_id=0)
base = T5ForConditionalGeneration(config).eval()
rows = {"input_ids": torch.tensor([[5, 9, 7, 1]]), "labels": torch.tensor([[6, 8, 1]])}
with torch.no_grad():
    before = base(**rows).logits
for target in ("shared", "embed_tokens"):
    model = get_peft_model(base, LoraConfig(r=4, target_modules=[target]))
    lora = [p for name, p in model.named_parameters() if "lora" in name]
    for parameter in lora:
        torch.nn.init.normal_(parameter)
    output = model(**rows)
    changed = not torch.equal(output.logits.detach(), before)
    if changed:
        output.loss.backward()
    trained = sum(p.grad is not None for p in lora)
    print(f"{target}: {len(lora)} tensors of adapters, logits changed: {changed}, tensors with a gradient: {trained}")
    assert (changed, trained > 0) == ((target == "embed_tokens"),) * 2, "peft or transformers changed"
    base = model.unload()
PY
