"""LoRA of convolutions: the update of their weight, by row, trained, merged, saved, combined, and in peft's files."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import hfadapt
from hfadapt.errors import AttachError, CheckpointError
from hfadapt.runtime import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model

CONVOLUTIONS = {
    "strided": (lambda: nn.Conv1d(3, 8, 3, stride=2, padding=1), (3, 9)),
    "dilated": (lambda: nn.Conv2d(3, 8, (3, 2), dilation=(2, 1), bias=False), (3, 7, 6)),
    "circular": (lambda: nn.Conv2d(3, 8, 3, padding="same", padding_mode="circular"), (3, 5, 4)),
    "film": (lambda: nn.Conv3d(3, 8, 2), (3, 3, 4, 3)),
}


class Net(nn.Module):
    """A convolution, and a linear whose name ends as that of another convolution does."""

    def __init__(self, convolution=nn.Identity, **more):
        super().__init__()
        self.config = SimpleNamespace(model_type="net")
        self.front = convolution()
        self.score = nn.Linear(8, 4)
        for name, module in more.items():
            setattr(self, name, module)

    def forward(self, sound):
        return self.score(self.front(sound).tanh().flatten(2).mean(-1))


def net(kind="strided", **more):
    torch.manual_seed(0)
    return Net(CONVOLUTIONS[kind][0], **more).double().eval()


def given(kind="strided", rows=4):
    return torch.randn(rows, *CONVOLUTIONS[kind][1], generator=torch.Generator().manual_seed(1)).double()


def adapted(kind="strided", names=("a", "b"), **more):
    model = net(kind)
    for number, name in enumerate(names):
        config = hfadapt.LoRA(2 + number, 3.0 + number, ("front", "score"), init="normal", **more)
        hfadapt.attach(model, config, name, train_head=False)
    randomize(model)
    return model


def by_hand(model, kind, name, sound):
    """The model with the update in the weights, as a function of the adapter's own tensors."""
    stock = net(kind)
    tensors = dict(stock.named_parameters())
    for path, delta in deltas_of(model, name):
        own, weight = delta.own(name), f"{path.partition('.hfadapt.')[0]}.weight"
        update = own.config.scale * own.lora_b @ own.lora_a.flatten(1)
        tensors[weight] = tensors[weight] + update.view_as(tensors[weight])
    return torch.func.functional_call(stock, tensors, (sound,))


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_rows_and_gradients_are_those_of_the_updated_weights(kind):
    model, sound = adapted(kind), given(kind)
    stock = net(kind)(sound)
    mixed = model(sound, task_ids=["a", None, "b", "a"])
    assert torch.equal(mixed[1], stock[1])
    want = torch.stack([by_hand(model, kind, name, sound)[row] for row, name in ((0, "a"), (2, "b"), (3, "a"))])
    torch.testing.assert_close(mixed[[0, 2, 3]], want, rtol=0, atol=1e-12)
    assert not torch.allclose(want, stock[[0, 2, 3]], atol=1e-4)
    trained = list(hfadapt.trainable_parameters(model).values())
    for mine, theirs in zip(
        torch.autograd.grad(mixed[[0, 2, 3]].square().sum(), trained),
        torch.autograd.grad(want.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_detached_merged_unmerged_saved_and_loaded(kind, tmp_path):
    model, sound = adapted(kind, bias=kind != "dilated"), given(kind)
    before = copy.deepcopy(net(kind).state_dict())
    want = model(sound, task_ids="a")
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, net(kind))
    assert torch.equal(again(sound, task_ids="b"), model(sound, task_ids="b"))
    hfadapt.detach(again, ["b"])
    merged = hfadapt.merge(again)
    torch.testing.assert_close(again(sound), want, rtol=0, atol=1e-12)
    merged.unmerge()
    assert torch.equal(again(sound), want)
    hfadapt.detach(model, ["a", "b"])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys() and torch.equal(model(sound), net(kind)(sound))


def test_what_is_dropped_in_a_row_hangs_on_no_other_row():
    model, sound = adapted(dropout=0.5).train(), given()

    def run(rows):
        torch.manual_seed(3)
        return model(sound, task_ids=rows)

    assert torch.equal(run(["a", "b", "a", "b"])[0], run(["a", "a", "b", None])[0])
    assert not torch.equal(run(["a"] * 4), model.eval()(sound, task_ids=["a"] * 4))


# model type, head, its convolutions, linears beside them
FAMILIES = {
    "vit": ("image-classification", ["projection"], ["q_proj"]),
    "whisper": (None, ["conv1", "conv2"], ["v_proj"]),
}


def base(family="vit"):
    torch.manual_seed(0)
    return tiny_model(family, FAMILIES[family][0]).eval()


@torch.no_grad()
def answer(model, family="vit", **more):
    return model.eval()(**tiny_inputs(family, FAMILIES[family][0]), **more)[0]


def of_peft(family, folder, **options):
    theirs = get_peft_model(base(family), LoraConfig(r=3, lora_alpha=5, **options))
    torch.manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(folder)
    return theirs


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_reads_and_writes_the_same(family, tmp_path):
    _, convolutions, linears = FAMILIES[family]
    targets = [*convolutions, *linears]
    theirs = of_peft(family, tmp_path / "theirs", target_modules=targets, lora_bias=family == "whisper")
    # Whisper asks its convolutions for their stride, which peft's layers around them have not: merged, it runs.
    want = answer(theirs.merge_and_unload(), family)
    mine = hfadapt.load(tmp_path / "theirs", base(family))
    torch.testing.assert_close(answer(mine, family), want, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(want, answer(base(family), family), atol=1e-3)
    hfadapt.export(mine, tmp_path / "mine", format="peft")
    again = PeftModel.from_pretrained(base(family), tmp_path / "mine")
    torch.testing.assert_close(answer(again.merge_and_unload(), family), want, rtol=1e-5, atol=1e-5)
    hfadapt.merge(mine)
    torch.testing.assert_close(answer(mine, family), want, rtol=1e-4, atol=1e-5)


def test_loras_of_convolutions_are_combined():
    model = base()
    for name, r in (("a", 2), ("b", 3)):
        hfadapt.attach(model, hfadapt.LoRA(r, 3.0, ("projection", "query")), name, train_head=False)
    randomize(model)
    with hfadapt.active(model, hfadapt.Stack("a", "b")):
        want = answer(model)
    with hfadapt.active(model, hfadapt.Parallel("a", "b")):  # whose rows part below the layers
        both = answer(model)
    torch.testing.assert_close(both[3:], answer(model, task_ids=["b"] * 3), rtol=1e-5, atol=1e-5)
    for method, more in (("cat", {}), ("svd", {"r": 5}), ("ties", {"r": 4, "density": 0.5})):
        hfadapt.combine(model, {"a": 1.0, "b": 1.0}, method=method, name=method, **more)
        got = answer(model, task_ids=[method] * 3)
        if method == "ties":
            assert torch.isfinite(got).all() and not torch.equal(got, answer(base()))
        else:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


class Filter(nn.Conv1d):
    """As BiT's: it standardises its weight."""

    def forward(self, x):
        return nn.functional.conv1d(x, self.weight / self.weight.norm(), self.bias)


class Causal(nn.Conv1d):
    """As those that hear a stream: it takes more than one argument, pads to the left and turns round what it makes."""

    def forward(self, x, masked=False):
        found = super().forward(nn.functional.pad(x, (self.kernel_size[0] - 1, 0))).transpose(1, 2)
        return found * (torch.arange(found.shape[1]) < 4).unsqueeze(-1) if masked else found


class Stream(nn.Module):
    def __init__(self, kind=Causal):
        super().__init__()
        self.config = SimpleNamespace(model_type="stream")
        self.front = kind(3, 8, 3)
        self.score = nn.Linear(8, 4)

    def forward(self, sound):
        return self.score(self.front(sound, masked=True))


def test_a_class_that_pads_and_calls_torch_has_its_update_inside(tmp_path):
    def stream():
        torch.manual_seed(0)
        return Stream().double().eval().requires_grad_(False)  # torch sums otherwise where a weight trains

    model, sound = stream(), given()
    for name in ("a", "b"):
        hfadapt.attach(model, hfadapt.LoRA(2, 3.0, ("front",), init="normal"), name, train_head=False, verify=False)
    randomize(model)
    model = copy.deepcopy(model)
    mixed = model(sound, task_ids=["a", "b", None, "a"])
    assert torch.equal(mixed[2], stream()(sound)[2])
    want = {}
    for name in ("a", "b"):
        (_, delta), stock = next(iter(deltas_of(model, name))), stream()
        own = delta.own(name)
        with torch.no_grad():
            stock.front.weight += (own.config.scale * own.lora_b @ own.lora_a.flatten(1)).view_as(stock.front.weight)
        want[name] = stock(sound)
    for row, name in ((0, "a"), (1, "b"), (3, "a")):
        torch.testing.assert_close(mixed[row], want[name][row], rtol=0, atol=1e-12)
    with torch.no_grad():
        hfadapt.save(model, tmp_path)
        again = hfadapt.load(tmp_path, stream())
        assert torch.equal(again(sound, task_ids="b"), model(sound, task_ids="b"))
        hfadapt.detach(again, ["b"])
        hfadapt.merge(again)
        torch.testing.assert_close(again(sound), want["a"], rtol=0, atol=1e-12)
    hfadapt.detach(model)
    assert "_conv_forward" not in vars(model.front) and torch.equal(model(sound), stream()(sound))


class Doubled(nn.Conv1d):
    """It calls torch's function, with another weight than its own."""

    def forward(self, x, masked=False):
        return self._conv_forward(x, 2 * self.weight, self.bias).transpose(1, 2)


def test_a_class_that_hands_on_another_weight_is_refused_when_it_runs():
    model = Stream(Doubled).double()
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("front",)), train_head=False, verify=False)
    with pytest.raises(AttachError, match="another weight than its own.*Doubled"):
        model(given())


@pytest.mark.parametrize(
    ("more", "names", "message"),
    [
        ({"deep": nn.Conv1d(8, 8, 3, groups=8)}, ("deep",), "net: deep: .*no update of low rank.*8 groups"),
        ({"mine": Filter(8, 8, 3)}, ("mine",), "forward of its own in Filter.*leaves it out"),
        ({}, ("frnt",), "front"),
    ],
    ids=["groups", "own-forward", "misspelt"],
)
def test_what_takes_no_update_is_refused(more, names, message):
    with pytest.raises(AttachError, match=message):
        hfadapt.attach(net(**more), hfadapt.LoRA(target_modules=names), train_head=False)


@pytest.mark.parametrize("more", [{"dora": True}, {"gate": "mean"}])
def test_what_a_convolution_cannot_have_is_refused(more):
    with pytest.raises(AttachError, match="A, B and a bias alone"):
        hfadapt.attach(base(), hfadapt.LoRA(target_modules=("projection",), **more))


def test_a_name_of_linears_means_linears_alone_and_all_of_them_no_convolution():
    def chosen(*names, **more):
        model = net(more=nn.ModuleDict({"front": nn.Linear(8, 8)}), **more)
        hfadapt.attach(model, hfadapt.LoRA(target_modules=names), train_head=False)
        return {path.partition(".hfadapt.")[0] for path, _ in deltas_of(model, "default")}

    assert chosen("front") == {"more.front"}
    assert chosen("all-linear") == {"more.front", "score"}
    assert chosen("score", "other.front", other=nn.ModuleDict({"front": nn.Conv1d(8, 8, 1)})) == {
        "score",
        "other.front",
    }


def test_a_model_of_convolutions_alone_is_told_their_names():
    model = nn.Sequential(nn.Conv1d(3, 8, 1))
    model.config = SimpleNamespace(model_type="net")
    with pytest.raises(AttachError, match=r"no linears.*names of convolutions: 0"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules="all-linear"))
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("0",)), verify=False)


def test_an_input_without_rows_is_an_error():
    model = nn.Sequential(nn.Conv1d(3, 8, 1), nn.Flatten(0))
    model.config = SimpleNamespace(model_type="net")
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("0",)), verify=False)
    with pytest.raises(AttachError, match="without rows"):
        model(torch.randn(3, 5))


def test_a_convolution_whose_weight_is_read_and_never_called_is_an_error():
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.front = nn.Conv1d(3, 8, 3)
            self.score = nn.Linear(8, 4)

        def forward(self, sound):
            return self.score(nn.functional.conv1d(sound, self.front.weight).mean(-1))

    model = nn.Sequential(Reads())
    model.config = SimpleNamespace(model_type="net")
    with pytest.raises(AttachError, match="would never run.*front"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("front",)), train_head=False)
        model(torch.randn(4, 3, 7))


def test_adapters_of_convolutions_are_averaged_and_stacked():
    model, sound = adapted(), given()

    seen = []
    model.front.register_forward_hook(lambda module, args, output: seen.append(output))

    def front(composition):
        with hfadapt.active(model, composition), torch.no_grad():
            model(sound)
        return seen[-1]

    a, b, none = front("a"), front("b"), net().front(sound)
    mean = front(hfadapt.Average("a", "b", weights=(0.25, 0.75)))
    torch.testing.assert_close(mean, 0.25 * a + 0.75 * b, rtol=0, atol=1e-12)
    torch.testing.assert_close(front(hfadapt.Stack("a", "b")), a + b - none, rtol=0, atol=1e-12)


def test_peft_cannot_say_what_another_window_reads(tmp_path):
    for kind in ("dilated", "circular"):
        with pytest.raises(AttachError, match="reads another window"):
            hfadapt.export(adapted(kind), tmp_path, "a", format="peft")
    of_peft("vit", tmp_path / "theirs", target_modules=["projection"])
    model = base()
    model.vit.embeddings.patch_embeddings.projection.padding_mode = "reflect"
    with pytest.raises(CheckpointError, match="reads another window"):
        hfadapt.load(tmp_path / "theirs", model)


def test_torch_reads_the_output_projection_of_its_own_attention_and_never_calls_it():
    for verify in (True, False):
        with pytest.raises(AttachError, match="never calls it.*attention.out_proj.*modules_to_save"):
            hfadapt.attach(
                net(attention=nn.MultiheadAttention(8, 2)), hfadapt.LoRA(target_modules=("out_proj",)), verify=verify
            )
