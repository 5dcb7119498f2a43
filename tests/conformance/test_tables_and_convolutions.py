"""LoRA of tables of vectors and of convolutions, through all that is asked of a method."""

import pytest

import hfadapt
from hfadapt.testing import conformance

# A decoder, an encoder, one with two tables of one name, patches of images, and sound.
CHOSEN = {
    "gpt2": ("wte", "c_attn"),
    "clip_text_model": ("token_embedding",),  # BERT's has a padding_idx, whose gradient is none by torch's own rule
    "bart": ("embed_tokens", "q_proj"),
    "vit": ("projection", "query"),
    "whisper": ("conv1", "conv2"),
}
CASES = [conformance.Case(hfadapt.LoRA(r=4, target_modules=names), kind) for kind, names in CHOSEN.items()]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model_type)
def test_all_checks(case):
    failures = []
    for check in conformance.CHECKS:
        try:
            check(case)
        except Exception as error:  # collected, so that one run shows every broken property of the pair
            failures.append(f"{check.__name__}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.model_type in ("clip_text_model", "vit")], ids=lambda case: case.model_type
)
def test_one_graph(case):
    conformance.check_compile(case)
