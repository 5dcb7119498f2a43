#!/bin/sh
# torch 2.13.0 multiplies a CPU tensor by a weight on the meta device without an error: the numbers are left-over memory.
#
# linear, mm, addmm and conv1d give such a CPU tensor; bmm and einsum give a meta tensor; + and layer_norm raise. So a
# model of peft 0.21.2 whose adapter was made with low_cpu_mem_usage=True, and whose weights were not loaded yet, runs,
# though an adapter that was not trained must change nothing. Exit status 0: both still do so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet transformers==5.24.0 peft==0.21.2

"$venv/bin/python" -W ignore - <<'PY'
import peft
import torch
import torch.nn.functional as F
import transformers

print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
x, weight = torch.randn(2, 3), torch.empty(4, 3, device="meta")
calls = {
    "linear": lambda: F.linear(x, weight),
    "mm": lambda: x @ weight.T,
    "addmm": lambda: torch.addmm(torch.zeros(4), x, weight.T),
    "conv1d": lambda: F.conv1d(x[None], weight[:, :2, None]),
    "bmm": lambda: torch.bmm(x[None], weight.T[None]),
    "einsum": lambda: torch.einsum("bi,oi->bo", x, weight),
    "add": lambda: x + weight[:2],
    "layer_norm": lambda: F.layer_norm(x, (3,), weight[0]),
}
found = {}
for name, call in calls.items():
    try:
        found[name] = call().device.type
    except RuntimeError:
        found[name] = "an error"
    print(f"{name:10} {found[name]}")
assert found == {
    **dict.fromkeys(["linear", "mm", "addmm", "conv1d"], "cpu"),
    **dict.fromkeys(["bmm", "einsum"], "meta"),
    **dict.fromkeys(["add", "layer_norm"], "an error"),
}, f"torch changed: {found}"

torch.manual_seed(0)
config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
base, ids = transformers.BertModel(config).eval(), torch.tensor([[5, 6, 7, 8]])
with torch.no_grad():
    stock = base(ids).last_hidden_state
    made = peft.LoraConfig(r=4, target_modules=["query", "value"])
    model = peft.get_peft_model(base, made, low_cpu_mem_usage=True)
    assert all(p.is_meta for name, p in model.named_parameters() if "lora_" in name), "peft changed: weights are there"
    outputs = [model(ids).last_hidden_state for _ in range(8)]
off = [(output - stock).abs().max().item() for output in outputs]
print("an adapter without weights, made to change nothing, changes the output by", ", ".join(f"{one:.2g}" for one in off))
assert all(output.device.type == "cpu" for output in outputs) and any(not one == 0 for one in off), "peft changed"
PY
