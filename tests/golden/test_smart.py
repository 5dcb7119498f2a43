"""SMART and FreeLB against float64 evaluations of their formulas and of released code, with the noise replayed."""

from __future__ import annotations

import pytest
import torch
from golden_files import DATA, close, starting_with, tensors_of
from safetensors.torch import load_file
from toy_net import gradients, step_of

import hfadapt
from hfadapt.training import regularizers as kit
from hfadapt_plugins.regularizers.smart import first_ascent, released_ascent

PAPER = {"sigma": 1e-5, "epsilon": 1e-5, "step_size": 1e-3, "proximal": "none"}


@pytest.mark.parametrize("scope", ["token", "example", "batch"])
def test_algorithm_1_with_its_projection(scope):
    golden = tensors_of(DATA / "formula" / f"smart_alg1_paper_scale_{scope}.safetensors")
    step = step_of(golden, golden["in.nu"])
    smart = hfadapt.SMART(scope=scope, **PAPER)
    found = []
    search, perturb = step.search, step.perturb
    step.search = lambda at, objective: found.append(search(at, objective)) or found[-1]
    step.perturb = lambda at: found.append(perturb(at)) or found[-1]
    term = smart.smooth(step)
    (first, (gradient,)), last = found
    close(step.clean.answers[0].logits, golden["out.clean_logits"], "clean logits")
    close(gradient, golden["step0.grad"], "gradient of the search")
    (moved,) = kit.ascended(first.deltas, (gradient,), step_size=1e-3, radius=1e-5, norm="inf", scope=scope)
    close(moved / 1e-5, golden["step0.delta_unmasked"] / 1e-5, "delta before the mask")
    close(last.deltas[0] / 1e-5, golden["out.delta"] / 1e-5, "delta")
    close(last.answers[0].logits, golden["out.adv_logits"], "adversarial logits")
    close(term.reshape(1) * 1e9, golden["out.R_s"] * 1e9, "R_s")
    (term * 1e5).backward()  # of the size of one, so that 1e-9 means something
    for name, gradient in gradients(step.module).items():
        close(gradient, golden[f"grad.{name}"] * 1e5, f"gradient of {name}")


def test_the_step_comes_before_the_projection():
    delta, gradient = torch.tensor([[[0.5, 0.0]]]).double(), torch.tensor([[[2.0, 1.0]]]).double()
    (moved,) = kit.ascended((delta,), (gradient,), step_size=1.0, radius=1.0, norm="inf", scope="token")
    # projecting first and stepping then would leave the ball
    assert moved.tolist() == [[[1.0, 0.5]]]
    (unit,) = kit.units((gradient,), "inf", "token")
    assert unit.tolist() == [[[1.0, 0.5]]], "the gradient is normalised before the step, not the step"


def released(name):
    path = DATA / "smart" / f"{name}.safetensors"
    golden = load_file(str(path))
    return {
        k: v.double() if k.startswith(("weight.", "in.")) and v.is_floating_point() else v for k, v in golden.items()
    }


@pytest.mark.parametrize(
    ("name", "criterion"),
    [
        ("mtdnn_head_cls_symkl_k1_paper", "sym_kl"),
        ("mtdnn_head_cls_nssymkl_k1", "ns_sym_kl"),
        ("mtdnn_head_reg_mse_k1", "sym_kl"),
    ],
)
def test_mode_mtdnn_computes_what_the_release_does(name, criterion):
    golden = released(name)
    step = step_of(golden, golden["step0.noise"])
    smart = hfadapt.SMART(mode="mtdnn", criterion=criterion, step_size=1e-3)
    found = []
    search, perturb = step.search, step.perturb
    step.search = lambda at, objective: found.append(search(at, objective)) or found[-1]
    step.perturb = lambda at: found.append(perturb(at)) or found[-1]
    term = smart.released(step)
    (_, (gradient,)), last = found
    close(gradient, golden["step0.grad"], "gradient of the search")
    close(last.deltas[0], golden["final.noise"], "noise")
    close(last.answers[0].logits, golden["final.adv_logits"], "adversarial logits")
    close(term.reshape(1).double(), golden["out.adv_loss"].double(), "loss")
    term.backward()
    for key, gradient in gradients(step.module).items():
        close(gradient, golden[f"grad.{key}"], f"gradient of {key}")


def test_mode_mtdnn_first_computes_what_the_release_of_april_2020_did():
    golden = released("mtdnn_5af3326_cls_symkl")
    step = step_of(golden, golden["step0.noise"])
    found = []
    search, perturb = step.search, step.perturb
    step.search = lambda at, objective: found.append(search(at, objective)) or found[-1]
    step.perturb = lambda at, **how: found.append(perturb(at, **how)) or found[-1]
    term = hfadapt.SMART(mode="mtdnn_first").first_released(step)
    (first, (gradient,)), last = found
    close(step.clean.answers[0].logits, golden["out.clean_logits"], "clean logits")
    close(gradient * 1e5, golden["step0.grad"] * 1e5, "gradient of the search")
    (moved,) = first_ascent(first.deltas, (gradient,), 1e-3, 1e-6)
    real = golden["in.attention_mask"].unsqueeze(-1)
    close(1e3 * moved * real, 1e3 * golden["final.offset_from_masked_embed"], "offset, masked")
    close(1e3 * last.deltas[0], 1e3 * golden["final.offset_from_masked_embed"], "offset that is used")
    close(term.reshape(1).double() * 1e6, golden["out.adv_loss"].double() * 1e6, "loss")
    (term * 1024).backward()  # a power of two rounds nothing; words get the gradient of the clean side alone
    for key, gradient in gradients(step.module).items():
        close(gradient, golden[f"grad.{key}"] * 1024, f"gradient of {key}")


def test_a_regression_is_compared_example_by_example_in_mode_paper():
    golden = released("mtdnn_head_reg_mse_k1")
    clean, adversarial = golden["out.clean_logits"], golden["final.adv_logits"]
    assert abs(float(kit.squared(clean, adversarial).mean()) - 1.257) < 1e-3
    assert abs(float(kit.released_squares(clean, adversarial)) - 0.824) < 1e-3


CRITERIA = {"SymKl": "sym_kl", "Kl": "kl", "NsKl": "ns_kl", "NsSymKl": "ns_sym_kl", "JS": "js"}


@pytest.mark.parametrize("theirs", CRITERIA)
def test_criteria_of_the_release(theirs):
    golden = load_file(str(DATA / "smart" / "losses.safetensors"))
    left, right = (golden[f"in.logits_{side}"].clone().requires_grad_() for side in "ab")
    value = kit.CRITERIA[CRITERIA[theirs]](left, right)
    value.backward()
    close(value.reshape(1), golden[f"mtdnn.{theirs}Criterion.value"], "value")
    for side, logits in (("a", left), ("b", right)):
        want = golden.get(f"mtdnn.{theirs}Criterion.grad_{side}")
        assert (want is None) == (logits.grad is None), f"which side has a gradient: {side}"
        if want is not None:
            close(logits.grad, want, f"gradient of {side}")


@pytest.mark.parametrize("reduce", [True, False])
def test_stable_kl(reduce):
    golden = load_file(str(DATA / "smart" / "losses.safetensors"))
    key = "mtdnn.stable_kl_batchmean" if reduce else "mtdnn.stable_kl_sum"
    logits = golden["in.logits_a"].clone().requires_grad_()
    value = kit.stable_kl(logits, golden["in.logits_b"], reduce=reduce)
    value.backward()
    close(value.reshape(1), golden[f"{key}.value"], "value")
    close(logits.grad, golden[f"{key}.grad_a"], "gradient")


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        ("formula.sym_kl_no_detach_batchmean", 5),
        ("formula.r3f_sym_kl_sum_over_batch", 5),
    ],
)
def test_symmetric_kl_is_differentiated_on_both_sides(key, rows):
    golden = tensors_of(DATA / "smart" / "losses.safetensors")
    left, right = (golden[f"in.logits_{side}"].clone().requires_grad_() for side in "ab")
    value = kit.symmetric_kl(left, right).sum() / rows
    value.backward()
    # the goldens are float32
    close(value.reshape(1), golden[f"{key}.value"], "value", 1e-6)
    for side, logits in (("a", left), ("b", right)):
        close(logits.grad, golden[f"{key}.grad_{side}"], f"gradient of {side}", 1e-6)


def test_momentum_and_the_mean_teacher():
    golden = tensors_of(DATA / "formula" / "mbpp.safetensors")
    theta = golden["theta"]
    net = torch.nn.Linear(3, 1, bias=False).double()
    with torch.no_grad():
        net.weight.copy_(theta[:1])
    proximal = hfadapt.SMART().proximal_point()
    teacher = kit.Teacher(net, proximal, len(theta) - 1)
    close(teacher.tensors["weight"][0], golden["theta_tilde"][0], "the teacher starts as the model")
    for t in range(1, len(theta)):
        assert kit.momentum_at(t, len(theta) - 1, proximal) == golden["beta"][t - 1]
        with torch.no_grad():
            net.weight.copy_(theta[t : t + 1])
        teacher.follow()
        close(teacher.tensors["weight"][0], golden["theta_tilde"][t], f"teacher after update {t}")


def test_bregman_term():
    golden = tensors_of(DATA / "formula" / "mbpp.safetensors")
    step = step_of(golden, golden["theta"], prefix="breg.student.", inputs="breg.in.")
    proximal = hfadapt.SMART().proximal_point()
    teacher = kit.Teacher(step.module, proximal, 20)
    teacher.tensors = starting_with(golden, "breg.teacher.")
    student = {name: p.detach().clone() for name, p in step.module.named_parameters()}
    step._teacher = teacher.teaching
    taught = step.teach()
    close(taught[0].logits, golden["breg.teacher_logits"], "teacher's logits")
    close(step.clean.answers[0].logits, golden["breg.student_logits"], "student's logits")
    assert all(torch.equal(p, student[name]) for name, p in step.module.named_parameters())
    term = kit.divergence(step.reference, taught)
    close(term.reshape(1), golden["breg.D_Breg"], "D_Breg")
    term.backward()
    for name, gradient in gradients(step.module).items():
        close(gradient, golden[f"breg.grad.{name}"], f"gradient of {name}")


def test_freelb():
    golden = tensors_of(DATA / "formula" / "freelb_l2.safetensors")
    dims = golden["in.attention_mask"].sum(1).view(-1, 1, 1) * 8
    step = step_of(golden, golden["in.delta0"] * dims.sqrt() / 0.3)
    seen = []
    train = step.train
    step.train = lambda at=None, last=True: seen.append(train(at, last=last)) or seen[-1]
    loss = hfadapt.FreeLB(steps=3, step_size=0.1, init_magnitude=0.3, max_norm=0.35).loss(step)
    loss.backward()
    for k, found in enumerate(seen):
        # the golden's losses are shares of the mean
        close(found.loss.reshape(1) / 3, golden[f"step{k}.loss"], f"loss {k}")
        close(found.deltas[0], golden[f"step{k}.delta"], f"delta {k}")
        close(found.gradients()[0], golden[f"step{k}.delta_grad"], f"gradient of delta {k}")
    close(loss, sum(golden[f"step{k}.loss"][0] for k in range(3)), "mean loss")
    for name, gradient in gradients(step.module).items():
        close(gradient, golden[f"accumulated_grad.{name}"], f"gradient of {name}")


@pytest.mark.parametrize("key", ["smartpt.sym_kl_batchmean_alpha1", "smartpt.sym_kl_sum"])
def test_the_loss_of_smart_pytorch_is_a_criterion_of_the_release(key):
    golden = load_file(str(DATA / "smart" / "losses.safetensors"))
    left, right = (golden[f"in.logits_{side}"].clone().requires_grad_() for side in "ab")
    value = kit.CRITERIA["sym_kl"](left, right) * (5 if key.endswith("sum") else 1)
    value.backward()
    close(value.reshape(1), golden[f"{key}.value"], "value", 1e-6)
    for side, logits in (("a", left), ("b", right)):
        close(logits.grad, golden[f"{key}.grad_{side}"], f"gradient of {side}", 1e-6)


def test_smart_pytorch_takes_the_same_step():
    golden = released("smartpytorch_k1")
    step = step_of(golden, golden["in.unit_noise"] * 1e-5)
    clean = step.reference[0].logits
    start = step.drawn("normal", 1e-5, padding=True)
    found, search = step.search(start, lambda one: kit.kl(clean.detach(), one.answers[0].logits).mean())
    at = released_ascent(found.deltas, search, 1e-3, 1e-6)
    loss = kit.symmetric_kl(clean, step.perturb(at).answers[0].logits).sum()
    close(loss.reshape(1), golden["out.loss"], "loss")
