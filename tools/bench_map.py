"""How long attach takes as a model grows: mapping it, choosing its linears, and all of it, on the meta device.

    python tools/bench_map.py --out benchmarks/map

A decoder of Llama's form with narrow layers, of a table and of the probe, with 250 to 1,000 linears; no weights, so
that what is measured is the work for each module. Each figure is the median of turns in this process, after one that is
not counted, in which the probe maps its shallow twin.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench_path import machine

LINEARS_A_LAYER = {"llama": 7, "stablelm": 7}
SIZES = (36, 72, 144)


def build(family: str, layers: int) -> Any:
    """A decoder on the meta device."""
    import torch
    from transformers import AutoConfig, AutoModel

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.device("meta"):
        return AutoModel.from_config(
            AutoConfig.for_model(family, vocab_size=99, num_hidden_layers=layers, pad_token_id=0, **sizes)
        )


def once(family: str, layers: int) -> dict[str, float]:
    """Seconds of the map, and of attach with LoRA on all linears, which maps the model too."""
    import hfadapt
    from hfadapt.architecture import resolve

    model = build(family, layers)
    begin = time.perf_counter()
    resolve(model)
    mapped = time.perf_counter()
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("all-linear",)))
    return {"map": mapped - begin, "attach": time.perf_counter() - mapped}


def measure(turns: int, sizes: Sequence[int]) -> list[dict[str, Any]]:
    """A row for each family and size."""
    rows = []
    for family, linears in LINEARS_A_LAYER.items():
        for layers in sizes:
            once(family, layers)
            seen = [once(family, layers) for _ in range(turns)]
            medians = {part: statistics.median(one[part] for one in seen) for part in seen[0]}
            rows.append({"family": family, "linears": linears * layers, **medians})
    return rows


def main() -> None:
    """Measure, and write ``attach_sizes.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--layers", type=int, nargs="*", default=SIZES)
    options = parser.parse_args()
    rows = measure(options.turns, options.layers)
    for row in rows:
        print(f"{row['family']}, {row['linears']} linears: map {row['map']:.3f} s, attach {row['attach']:.3f} s")
    options.out.mkdir(parents=True, exist_ok=True)
    found = {"machine": machine(), "turns": options.turns, "rows": rows}
    (options.out / "attach_sizes.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
