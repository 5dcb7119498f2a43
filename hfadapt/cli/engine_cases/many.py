"""A thousand tasks of mixed families loaded, against one: what a row of the one costs."""

from __future__ import annotations

from .case import Case, Rival, Sizes
from .models import BOTTLENECK, LORA, bert, engine_of

__all__ = ["cases"]

_LENGTHS = (16, 64)
# Small ones of every family, so that a thousand fit into memory.
FAMILIES = (
    LORA,
    BOTTLENECK,
    {"method": "pal", "size": 24, "num_heads": 12},
    {"method": "prefix", "num_virtual_tokens": 8, "reparametrization": "flat"},
    {"method": "mam", "prefix": {"num_virtual_tokens": 8, "reparametrization": "flat"}, "ffn": {"r": 16}},
)


def cases(sizes: Sizes) -> list[Case]:
    """The same rows of a LoRA's task, with all tasks loaded and with it alone."""
    import hfadapt

    from ...testing.toy import tiny_tokenizer

    names = [f"t{number}" for number in range(sizes.many)]
    engines = []
    for loaded in (names, names[:1]):
        base = bert(sizes, max(_LENGTHS))
        for number, family in enumerate(FAMILIES):
            if own := loaded[number :: len(FAMILIES)]:
                hfadapt.attach(base, family, names=own, verify=False)
        order = [*hfadapt.attachment(base).names]
        engines.append(engine_of(base, order, "float32", tiny_tokenizer("right", max(_LENGTHS))))
    many, one = engines
    tensors = {id(p): p.nbytes for p in many.model.base.parameters()}
    bare = sum(p.nbytes for p in bert(sizes, max(_LENGTHS)).parameters())
    notes = {"MB a task": (sum(tensors.values()) - bare) / 1e6 / sizes.many}
    found = []
    for tokens in _LENGTHS:
        text = [" ".join(f"w{(word + row) % 95}" for word in range(tokens - 2)) for row in range(sizes.rows)]
        found.append(
            Case(
                f"{sizes.many} tasks of {len(FAMILIES)} families loaded",
                lambda text=text: many.predict(text, ["t0"] * len(text)) and None,
                [Rival("one task loaded", lambda text=text: one.predict(text, ["t0"] * len(text)) and None, most=1.1)],
                f"{sizes.rows} x {tokens}, one task's rows",
                notes=notes,
            )
        )
    return found
