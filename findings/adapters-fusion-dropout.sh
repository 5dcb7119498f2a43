#!/bin/sh
# adapters 1.3.0: AdapterFusion asked for without dropout drops attention weights at the rate of the base's attention.
#
# AdapterFusionConfig(dropout_prob=0.0) counts as not given, and BERT's attention_probs_dropout_prob (0.1 in released models)
# takes its place; the fusion's own config still says 0.0. Any other rate is taken. So no fusion is trained without dropout on
# a base that has some. Exit status 0: adapters still does so.
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
from adapters.methods.modeling import BertFusion

print(f"torch {torch.__version__}, transformers {transformers.__version__}, adapters {adapters.__version__}")


def model_with_fusion(asked, base):
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=base,
    )
    model = transformers.BertModel(config)
    adapters.init(model)
    for name in ("a", "b"):
        model.add_adapter(name, config="seq_bn")
    model.add_adapter_fusion(["a", "b"], adapters.StaticAdapterFusionConfig(dropout_prob=asked))
    return model


def rate(model):
    return next(module.dropout.p for module in model.modules() if isinstance(module, BertFusion))


for base, asked, wanted in ((0.1, 0.0, 0.1), (0.3, 0.0, 0.3), (0.1, 0.2, 0.2), (0.0, 0.0, 0.0), (0.1, None, 0.1)):
    found = rate(model_with_fusion(asked, base))
    print(f"base's attention {base}, dropout_prob={asked}: fusion drops {found}")
    assert found == wanted, f"adapters changed: {found}"

model = model_with_fusion(0.0, 0.1)
(said,) = (config.dropout_prob for config in (model.adapters_config.get_fusion("a,b")[0],))
print(f"the config of the fusion that drops {rate(model)} says {said}")
assert said == 0.0, f"adapters changed: {said}"
PY
