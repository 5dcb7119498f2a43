"""AdapterFusion of eight, beside AdapterHub's library."""

from __future__ import annotations

from .case import Case, Rival, Sizes
from .models import BOTTLENECK, adapted, batch, packed
from .rivals import Rivals

__all__ = ["cases"]

ADAPTERS = 8


def cases(sizes: Sizes, rivals: Rivals) -> list[Case]:
    """In float32, and with a base in int8."""
    import torch

    import hfadapt

    ids = batch(sizes, sizes.tokens, 1)["input_ids"]
    shape = {"layers": sizes.layers, "hidden": sizes.hidden, "rows": sizes.rows, "tokens": sizes.tokens}
    rival = rivals.call("fusion", **shape, tasks=ADAPTERS)
    found = []
    for dtype, goal in (("float32", 2.6), ("int8_dynamic", 5.0)):
        model = adapted(sizes, BOTTLENECK, ADAPTERS)
        hfadapt.add_fusion(model, [f"t{number}" for number in range(ADAPTERS)])
        packed(model.eval().requires_grad_(False), dtype)

        def run(model: object = model) -> None:
            assert callable(model)
            with torch.inference_mode():
                model(input_ids=ids)

        name = f"AdapterFusion of {ADAPTERS}"
        found.append(Case(name, run, [Rival("adapters, Fuse", rival, goal)], f"{sizes.rows} x {sizes.tokens}", dtype))
    return found
