#!/bin/sh
# safetensors 0.8.0: the same tensors with the same metadata are written as other bytes from one call to the next.
#
# Where the metadata has more than one entry (transformers writes "format"; a library that adds a version has two), the
# entries come in an order that is drawn for each call. A digest of the file, or a store that keeps equal files once,
# then takes two saves of one adapter for two adapters. Exit status 0: one save in two still differs.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet safetensors==0.8.0 numpy==2.2.6

"$venv/bin/python" - <<'PY'
import hashlib
import sys

import numpy as np
from safetensors.numpy import save

tensors = {"lora_a": np.ones((2, 4), np.float32), "lora_b": np.zeros((4, 2), np.float32)}
for metadata in ({"format": "pt"}, {"format": "pt", "version": "1"}):
    digests = {hashlib.sha256(save(tensors, metadata)).hexdigest()[:12] for _ in range(40)}
    print(f"metadata {metadata}: 40 saves of the same tensors, {len(digests)} different files")
sys.exit(len(digests) != 2)
PY
