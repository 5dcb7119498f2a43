#!/bin/sh
# adapters 1.3.0: on DistilBERT a row's output with a prefix depends on whether its neighbours in the batch are padded.
#
# Under sdpa, the attention that transformers chooses by itself, a padded batch has an additive mask, 0 for what is seen.
# adapters puts ones in front of it for the prefix, which then weighs e times as much as it should. A batch without padding
# has no mask, and under eager attention ones are what says "seen": both are right. Exit status 0: adapters still does so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0
"$venv/bin/pip" install --quiet transformers==4.57.6 adapters==1.3.0

"$venv/bin/python" -W ignore - <<'PY'
import adapters
import torch
import transformers

print(f"torch {torch.__version__}, transformers {transformers.__version__}, adapters {adapters.__version__}")
config = transformers.DistilBertConfig(
    vocab_size=40, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=16, initializer_range=0.3
)
tokens = torch.arange(5, 17).view(2, 6)
whole = torch.ones_like(tokens)
padded = whole.clone()
padded[1, -2:] = 0


@torch.no_grad()
def moved(attention: str, prefix: bool) -> float:
    """By how much the first row, which has no padding, moves when the second row is padded."""
    torch.manual_seed(0)
    model = transformers.DistilBertModel._from_config(config, attn_implementation=attention)
    if prefix:
        adapters.init(model)
        model.add_adapter("p", config=adapters.PrefixTuningConfig(prefix_length=4, flat=True))
        model.set_active_adapters("p")
        for name, parameter in model.named_parameters():
            if "prefix" in name:
                parameter.normal_()
    model.eval()
    return float((model(tokens, attention_mask=whole)[0] - model(tokens, attention_mask=padded)[0])[0].abs().max())


found = {(attention, prefix): moved(attention, prefix) for attention in ("eager", "sdpa") for prefix in (False, True)}
for (attention, prefix), by in found.items():
    print(f"{attention:5} {'with a prefix' if prefix else 'without one':13} the whole row moves by {by:.2g}")
wrong = found.pop(("sdpa", True))
assert max(found.values()) < 1e-5 and wrong > 0.05, f"adapters changed: {wrong} {found}"
PY
