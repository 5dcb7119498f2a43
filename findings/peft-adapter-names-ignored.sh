#!/bin/sh
# peft 0.21.2 accepts adapter_names for every method, but obeys it for LoRA alone.
#
# A mixed batch asks for adapter a in row 0 and b in row 1. LoRA gives each row its own. IA3, OFT, VeRA and HRA take the
# same argument, say nothing, and compute both rows with the active adapter. Exit status 0: peft still does so.
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
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    vocab_size=50,
    initializer_range=0.3,  # with the small one of pretraining all outputs are near zero
)
targets = {"target_modules": ["query", "value"]}
methods = {
    "LoRA": peft.LoraConfig(**targets, init_lora_weights=False),
    "IA3": peft.IA3Config(**targets, feedforward_modules=[], init_ia3_weights=False),
    "OFT": peft.OFTConfig(**targets, init_weights=False, oft_block_size=4),
    "VeRA": peft.VeraConfig(**targets, init_weights=False),
    "HRA": peft.HRAConfig(**targets, init_weights=False),
}
rows = torch.arange(12).view(2, 6)
obeyed = {}
for name, method in methods.items():
    torch.manual_seed(0)
    model = peft.get_peft_model(transformers.BertForSequenceClassification(config), method, "first")
    model.add_adapter("second", method)
    model.eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            # some start as the identity or alike, whatever init_weights says
            if ".second" in key:
                parameter.add_(0.3 * torch.randn_like(parameter))
        alone = {}
        for adapter in ("second", "first"):  # the first one is active afterwards
            model.set_adapter(adapter)
            alone[adapter] = model(input_ids=rows).logits
        mixed = model(input_ids=rows, adapter_names=["first", "second"]).logits
    wanted = torch.stack([alone["first"][0], alone["second"][1]])
    asked, active = (mixed - wanted).abs().max().item(), (mixed - alone["first"]).abs().max().item()
    obeyed[name] = asked < 1e-6
    assert (alone["first"] - alone["second"]).abs().max() > 1e-3, "the adapters must differ"
    assert obeyed[name] or active == 0
    print(f"{name:5} from the adapters asked for: {asked:.1e}; from the active adapter for all rows: {active:.1e}")
assert obeyed == {"LoRA": True, "IA3": False, "OFT": False, "VeRA": False, "HRA": False}, f"peft changed: {obeyed}"
PY
