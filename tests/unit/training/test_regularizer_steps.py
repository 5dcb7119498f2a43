"""Passes of a regularizer over one batch: what is perturbed, and what stays as it was."""

from __future__ import annotations

import pytest
import torch

import hfadapt
from hfadapt.errors import ArchitectureError, ConfigError
from hfadapt.testing.regularizers import make_step, tiny_batch, tiny_classifier
from hfadapt.testing.tiny import ALL_TINY_TYPES, tiny_inputs, tiny_model
from hfadapt.training import regularizers as kit

WORDLESS = ("vit", "clip", "clip_vision_model", "whisper")
WITH_WORDS = [one for one in ALL_TINY_TYPES if one not in WORDLESS]


def zeros(call, embedded, input_ids):
    return torch.zeros_like(embedded)


@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("model_type", WITH_WORDS)
def test_zero_noise_gives_bit_equal_outputs_on_every_architecture_with_words(model_type, padding):
    model = tiny_model(model_type)
    inputs = tiny_inputs(model_type, padding=padding)
    with torch.no_grad():
        want = model(**inputs)[0]
        with kit.perturbed(kit.word_embeddings(model), zeros) as added:
            got = model(**inputs)[0]
        with kit.perturbed(kit.word_embeddings(model), lambda *call: torch.full_like(call[1], 0.1)):
            moved = model(**inputs)[0]
    assert torch.equal(got, want) and not torch.equal(moved, want)
    assert [one.shape[:2] for one in added] == [inputs["input_ids"].shape]


@pytest.mark.parametrize("model_type", WORDLESS)
def test_models_without_words_are_refused(model_type):
    with pytest.raises(ArchitectureError, match="no word embeddings to perturb.*try: .*r_drop or sam"):
        kit.word_embeddings(tiny_model(model_type))


def test_every_pass_has_the_dropout_masks_of_the_clean_one():
    model, smart = tiny_classifier(), hfadapt.SMART(proximal="none")
    step = make_step(model, tiny_batch(), smart)
    clean = step.clean.answers[0].logits
    assert torch.equal(step.perturb(zeros).answers[0].logits, clean)
    found, _ = step.search(zeros, lambda one: one.loss)
    assert torch.equal(found.answers[0].logits, clean)
    assert torch.equal(step.train(zeros).answers[0].logits, clean)
    assert not torch.equal(step.other_dropout().answers[0].logits, clean)
    with torch.no_grad():
        assert not torch.equal(model(**tiny_batch()).logits, clean)


def test_smart_stays_in_its_ball_and_off_the_padding():
    for norm, scope in (("inf", "token"), ("l2", "token"), ("l2", "example"), ("l2", "batch")):
        smart = hfadapt.SMART(norm=norm, scope=scope, epsilon=0.03, sigma=0.5, step_size=0.4, inner_steps=3)
        model, batch = tiny_classifier(), tiny_batch()
        step = make_step(model, batch, smart)
        perturb, seen = step.perturb, []
        step.perturb = lambda at, perturb=perturb, seen=seen: seen.append(perturb(at)) or seen[-1]
        smart.loss(step)
        (delta,) = seen[0].deltas
        (size,) = kit.norms((delta,), norm, scope)
        assert 0 < float(size.max()) <= 0.03 + 1e-9, (norm, scope)
        assert not delta[batch["attention_mask"] == 0].any()


def test_noise_of_a_row_depends_on_its_number_alone():
    like = torch.zeros(4, 5, 8)
    both = kit.Noise((1, 2), range(4)).draw("normal", 1.0, like)
    second = kit.Noise((1, 2), [2, 3]).draw("normal", 1.0, like[:2])
    assert torch.equal(both[2:], second)
    longer = kit.Noise((1, 2), range(4)).draw("uniform", 1.0, torch.zeros(4, 7, 8))
    assert torch.equal(kit.Noise((1, 2), range(4)).draw("uniform", 1.0, like), longer[:, :5])
    assert not torch.equal(both, kit.Noise((1, 3), range(4)).draw("normal", 1.0, like))
    assert abs(float(kit.Noise((0,), range(64)).draw("normal", 2.0, torch.zeros(64, 16, 8)).std()) - 2) < 0.05


def test_kinds_of_answers():
    def answers(model, **inputs):
        return kit.answers_of(model, model(**inputs), inputs)[0]

    inputs = tiny_inputs("bert", padding="right")
    mask = inputs["attention_mask"]
    classes = answers(tiny_model("bert", "sequence-classification", num_labels=3), **inputs)
    assert (classes.kind, classes.logits.shape) == ("classes", (3, 3))
    number = answers(tiny_model("bert", "sequence-classification", num_labels=1), **inputs)
    assert (number.kind, number.logits.shape) == ("numbers", (3, 1))
    many = tiny_model("bert", "sequence-classification", num_labels=3, problem_type="multi_label_classification")
    assert answers(many, **inputs).kind == "labels"
    tokens = tiny_model("bert", "token-classification", num_labels=4)
    assert answers(tokens, **inputs).logits.shape == (int(mask.sum()), 4)
    labels = torch.full((3, 7), -100)
    labels[:, 1:3] = 1
    assert answers(tokens, **inputs, labels=labels).logits.shape == (6, 4)
    span = answers(tiny_model("bert", "question-answering"), **inputs)
    assert span.logits.shape == (6, 7)
    assert torch.equal(span.logits.isneginf(), ~mask.bool().repeat(2, 1))
    words = tiny_inputs("gpt2", "causal-lm")["input_ids"]
    assert answers(tiny_model("gpt2", "causal-lm"), input_ids=words, labels=words).logits.shape[0] == 3 * 6
    written = tiny_inputs("t5", "seq2seq-lm", padding="right")
    wrote = written.pop("decoder_input_ids").index_fill(1, torch.tensor([4]), -100)
    assert answers(tiny_model("t5", "seq2seq-lm"), **written, labels=wrote).logits.shape[0] == 3 * 4
    with pytest.raises(ConfigError, match="no logits to compare"):
        answers(tiny_model("bert"), **inputs)


def test_places_that_are_padded_change_no_divergence():
    left, right = torch.randn(2, 5), torch.randn(2, 5)
    left[:, 4] = right[:, 4] = -torch.inf
    left.requires_grad_()
    torch.testing.assert_close(kit.symmetric_kl(left, right), kit.symmetric_kl(left[:, :4], right[:, :4]))
    kit.symmetric_kl(left, right).sum().backward()
    assert left.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("smart", {"epsilon": 0}, "bad epsilon"),
        ("smart", {"epsilon": -1e-5}, "bad epsilon"),
        ("smart", {"sigma": 0}, "bad sigma"),
        ("smart", {"sigma": -1.0}, "bad sigma"),
        ("smart", {"epsilon": float("nan")}, "bad epsilon"),
        ("smart", {"inner_steps": 0}, "bad inner_steps"),
        ("smart", {"norm": "l1"}, "bad norm.*allowed: 'inf', 'l2'"),
        ("smart", {"mode": "papr"}, "bad mode.*Did you mean 'paper'"),
        ("smart", {"mode": "mtdnn", "norm": "l2"}, "bad norm"),
        ("smart", {"mode": "mtdnn_first", "scope": "batch"}, "bad norm"),
        ("smart", {"mode": "mtdnn_first", "inner_steps": 2}, "bad inner_steps"),
        ("smart", {"mode": "mtdnn_first", "criterion": "js"}, "bad criterion"),
        ("smart", {"momentum": 0.99}, "bad momentum.*two numbers"),
        ("smart", {"momentum": (0.99, 1.0)}, "bad momentum"),
        ("smart", {"weight": -1}, "bad weight"),
        ("smart", {"smoothness": False, "mu": 0}, "bad smoothness"),
        ("smart", {"epsilom": 1}, "unknown field 'epsilom'.*Did you mean 'epsilon'"),
        ("freelb", {"steps": 0}, "bad steps"),
        ("freelb", {"init_magnitude": 0}, "bad init_magnitude"),
        ("freelb", {"weight": 1.5}, "bad weight"),
        ("pgd", {"epsilon": 0}, "bad epsilon"),
        ("freeat", {"step_size": -1}, "bad step_size"),
        ("yopo", {"inner_steps": 1.5}, "bad inner_steps"),
        ("vat", {"xi": 0}, "bad xi"),
        ("r3f", {"sigma": 0}, "bad sigma"),
        ("r3f", {"noise": "gauss"}, "bad noise"),
        ("r4f", {"lipschitz": 0}, "bad lipschitz"),
        ("sam", {"rho": 0}, "bad rho"),
        ("sam", {"adaptive": 1}, "bad adaptive"),
        ("r_drop", {"alpha": 1}, "unknown field 'alpha'"),
    ],
    ids=str,
)
def test_bad_options_are_refused(name, options, said):
    with pytest.raises(ConfigError, match=said):
        kit.make_regularizer(name, options)


def test_names_are_looked_up():
    with pytest.raises(hfadapt.HFAdaptError, match="smart"):
        kit.make_regularizer("smrt")
    with pytest.raises(ConfigError, match=r"not a regularizer.*try: SMART\(\)"):
        kit.make_regularizer(hfadapt.SMART)
    with pytest.raises(ConfigError, match="options beside a regularizer"):
        kit.make_regularizer(hfadapt.SMART(), {"mu": 2})
    assert kit.make_regularizer({"name": "smart", "mu": 2}) == hfadapt.SMART(mu=2)
