"""attach, detach and what a model is in between."""

import threading

import pytest
import torch

import hfadapt
from hfadapt import routing
from hfadapt.errors import AttachError, CompositionError, ConfigError, RegistryError, RoutingError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from tests.unit.releases import checkpoint_activations

INPUTS = tiny_inputs("bert", padding="right")


def adapted(names=("one", "two"), method="lora", **options):
    model = tiny_model("bert", **options)
    hfadapt.attach(model, method, names=names)
    randomize(model)
    return model


@torch.no_grad()
def run(model, **more):
    return model(**INPUTS, **more)[0]


def test_attach_freezes_the_base_and_trains_a_copy_of_the_task_head():
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, "lora")
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert all("hfadapt" in n for n in trained)
    assert {n for n in trained if n.startswith("classifier")} == {
        f"classifier.hfadapt.copies.default.{k}" for k in ("weight", "bias")
    }
    assert {id(p) for p in hfadapt.parameters_of(model, "default").values()} <= {
        id(p) for p in hfadapt.trainable_parameters(model).values()
    }


def test_pretrained_language_model_head_stays_frozen():
    model = tiny_model("gpt2", "causal-lm")
    hfadapt.attach(model, "lora")
    assert all("hfadapt" in n for n in hfadapt.trainable_parameters(model))


def test_base_can_train_along():
    model = tiny_model("bert")
    hfadapt.attach(model, "lora", freeze_base=False)
    assert all(p.requires_grad for p in model.parameters())


def test_single_adapter_is_active_by_default_and_can_be_switched_off():
    model = tiny_model("bert")
    base = run(model)
    hfadapt.attach(model, "lora")
    randomize(model)
    changed = run(model)
    assert not torch.equal(changed, base)
    with hfadapt.active(model, None):
        assert torch.equal(run(model), base)
    assert torch.equal(run(model), changed)


def test_several_adapters_without_a_choice_is_an_error_and_never_a_silent_no_op():
    with pytest.raises(RoutingError, match=r"none was chosen.*allowed: one, two; try: pass task_ids"):
        run(adapted())


@pytest.mark.parametrize(
    "ids, message",
    [
        (
            ["one", "tow", "one"],
            "unknown adapter or task 'tow'; got: 'tow'; allowed: one, two; try: Did you mean 'two'",
        ),
        (torch.tensor([0, 1, 2]), r"out of range; got: \[2\]; allowed: 0 to 1 \(one, two\)"),
        (torch.tensor([0, -2, 1]), r"out of range; got: \[-2\]"),
        (torch.tensor([0.0, 1.0, 1.0]), "an integer tensor"),
        (torch.tensor([[0, 1, 1]]), r"an integer tensor \[B\]"),
        (["one", "two"], "2 task ids for 3 rows"),
        (7, "bad task id; got: 7"),
        (hfadapt.Stack("one", "two"), r"got: Stack\('one', 'two'\).*try: hfadapt.activate"),
        (["one", 1.5, "two"], "bad task id; got: 1.5"),
    ],
)
def test_bad_task_ids_say_what_is_allowed_and_leave_no_routing_behind(ids, message):
    model = adapted()
    with pytest.raises(RoutingError, match=message):
        run(model, task_ids=ids)
    assert routing.current() is None
    assert run(model, task_ids="one").shape[0] == 3


def test_error_inside_the_model_leaves_no_routing_behind():
    model = adapted()
    with pytest.raises(ValueError):
        model(task_ids="one")
    assert routing.current() is None


def test_nested_forwards_find_their_own_routing_again():
    outer, inner = adapted(), adapted()
    want = run(outer, task_ids="one")

    def run_another(*_):
        run(inner, task_ids="two")

    outer.encoder.layer[0].register_forward_hook(run_another)
    assert torch.equal(run(outer, task_ids="one"), want)


def test_threads_do_not_see_each_others_routing():
    model = adapted()
    want = {name: run(model, task_ids=name) for name in ("one", "two")}
    wrong = []

    def work(name):
        for _ in range(10):
            if not torch.equal(run(model, task_ids=name), want[name]):
                wrong.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two", "one")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_calling_a_submodule_of_the_model_routes_as_well():
    model = tiny_model("bert", "sequence-classification")
    hfadapt.attach(model, "lora")
    randomize(model)
    with torch.no_grad():
        whole = model(**INPUTS, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(model.bert(**INPUTS)[0], whole)


def test_hidden_states_show_the_adapted_values():
    model = adapted(method="low_rank")
    with torch.no_grad():
        out = model(**INPUTS, task_ids="one", output_hidden_states=True)
    assert torch.equal(out.hidden_states[-1], out.last_hidden_state)
    with torch.no_grad(), hfadapt.active(model, None):
        base = model(**INPUTS, output_hidden_states=True)
    assert torch.equal(out.hidden_states[0], base.hidden_states[0])
    assert not torch.equal(out.hidden_states[1], base.hidden_states[1])


def test_gradients_are_right_when_backward_runs_in_another_thread():
    model = adapted(method="low_rank")
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients(in_thread):
        model.zero_grad()
        loss = model(**INPUTS, task_ids=["one", "two", "one"])[0].square().sum()
        if in_thread:
            thread = threading.Thread(target=loss.backward)
            thread.start()
            thread.join()
        else:
            loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    want = gradients(False)
    checkpoint_activations(model, use_reentrant=False)
    got = gradients(True)
    assert got.keys() == want.keys()
    for name, gradient in want.items():
        torch.testing.assert_close(got[name], gradient)


def test_two_checkpointed_forwards_before_one_backward_keep_their_own_routing():
    model = adapted(method="low_rank").train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0

    def gradients():
        model.zero_grad()
        total = sum(model(**INPUTS, task_ids=name)[0].square().sum() for name in ("one", "two"))
        total.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    want = gradients()
    checkpoint_activations(model, use_reentrant=False)
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, want[name])


def hooks_of(model):
    return dict(model.get_input_embeddings()._forward_hooks)


def test_checkpointings_hook_on_the_embeddings_rests_under_adapters_and_comes_back():
    model = tiny_model("bert").train()
    model.requires_grad_(False)
    checkpoint_activations(model, use_reentrant=False)
    model.enable_input_require_grads()
    before = hooks_of(model)
    assert before

    def embedded():
        return model(**INPUTS, output_hidden_states=True).hidden_states[0].requires_grad

    assert embedded()
    handle = hfadapt.attach(model, "lora")
    assert not embedded()
    hfadapt.activate(model, None)
    assert embedded()
    handle.detach()
    assert hooks_of(model) == before and embedded()


def test_transformers_can_still_remove_its_hook_while_adapters_are_attached():
    model = tiny_model("bert").train()
    checkpoint_activations(model, use_reentrant=False)
    model.enable_input_require_grads()
    count = len(hooks_of(model))
    handle = hfadapt.attach(model, "lora")
    model(**INPUTS)
    model.disable_input_require_grads()
    handle.detach()
    assert len(hooks_of(model)) < count


@pytest.mark.parametrize("name", ["", "a.b", "keys", "train", "a b", "-a"])
def test_names_that_cannot_be_module_names_are_refused(name):
    with pytest.raises(AttachError, match="bad adapter or task name"):
        hfadapt.attach(tiny_model("bert"), "lora", name)


def test_name_used_twice_is_refused_and_nothing_is_attached():
    model = tiny_model("bert")
    with pytest.raises(AttachError, match="an adapter of that name exists; got: a"):
        hfadapt.attach(model, "lora", names=["a", "b", "a"])
    assert not hasattr(model, "_hfadapt")


def test_failed_attach_leaves_the_model_as_it_was():
    model = tiny_model("bert")
    before = run(model)
    with pytest.raises(AttachError):
        hfadapt.attach(model, hfadapt.LoRA(layers=(99,)))
    assert torch.equal(run(model), before)
    assert "_hfadapt" not in model.__dict__ and not model._forward_pre_hooks


def test_failed_second_attach_keeps_the_first_adapter():
    model = adapted(("one",))
    want = run(model)
    with pytest.raises(AttachError):
        hfadapt.attach(model, hfadapt.LoRA(layers=(99,)), "two")
    assert hfadapt.attachment(model).names == ("one",)
    assert torch.equal(run(model), want)


def test_adapters_of_different_methods_share_one_batch():
    model = tiny_model("bert")
    hfadapt.attach(model, "lora", "a")
    hfadapt.attach(model, "low_rank", "b")
    randomize(model)
    alone = {name: run(model, task_ids=name) for name in ("a", "b")}
    mixed = run(model, task_ids=["b", "a", "b"])
    for row, name in enumerate(["b", "a", "b"]):
        torch.testing.assert_close(mixed[row], alone[name][row])


def test_detaching_one_adapter_keeps_the_others_bit_for_bit():
    model = adapted()
    want = run(model, task_ids="two")
    hfadapt.detach(model, "one")
    assert hfadapt.attachment(model).names == ("two",)
    assert torch.equal(run(model), want)


def test_handle_counts_its_parameters():
    model = tiny_model("bert")
    handle = hfadapt.attach(model, "low_rank", names=["a", "b"])
    total = sum(p.numel() for n, p in model.named_parameters() if "hfadapt" in n)
    assert handle.num_parameters() == total and f"{total:,}" in repr(handle)


def test_same_seed_gives_the_same_weights_and_leaves_the_generator_alone():
    state = torch.get_rng_state()
    first, second = tiny_model("bert"), tiny_model("bert")
    hfadapt.attach(first, "low_rank", seed=3)
    hfadapt.attach(second, "low_rank", seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_compiled_model_is_refused():
    model = torch.compile(tiny_model("bert"))
    with pytest.raises(AttachError, match=r"compiled.*try: attach first, then torch\.compile"):
        hfadapt.attach(model, "lora")


def test_unknown_method_and_field_name_the_nearest():
    with pytest.raises(RegistryError, match="Did you mean 'lora'"):
        hfadapt.attach(tiny_model("bert"), "lroa")
    with pytest.raises(ConfigError, match="unknown field 'sze'"):
        hfadapt.attach(tiny_model("bert"), {"method": "low_rank", "sze": 3})


def test_composition_of_unknown_adapters_is_refused():
    with pytest.raises(CompositionError, match="not attached; got: three"):
        hfadapt.activate(adapted(), hfadapt.Stack("one", "three"))


def test_stack_runs_both_and_average_mixes_them():
    model = adapted(method="low_rank")
    one, two = run(model, task_ids="one"), run(model, task_ids="two")
    hfadapt.activate(model, hfadapt.Stack("one", "two"))
    stacked = run(model)
    assert not torch.allclose(stacked, one) and not torch.allclose(stacked, two)
    hfadapt.activate(model, hfadapt.Average("one", "two", weights=[1.0, 0.0]))
    torch.testing.assert_close(run(model), one)


def test_named_composition_is_routable_per_row():
    model = adapted(method="low_rank")
    hfadapt.compose(model, "both", hfadapt.Stack("one", "two"))
    want = {name: run(model, task_ids=name) for name in ("one", "both")}
    mixed = run(model, task_ids=["both", "one", "both"])
    for row, name in enumerate(["both", "one", "both"]):
        torch.testing.assert_close(mixed[row], want[name][row])


def test_dropping_more_layers_than_exist_is_refused():
    with pytest.raises(AttachError, match="cannot drop that many layers.*got: 3; allowed: 0 to 2"):
        hfadapt.set_adapter_drop(adapted(), 3)


def test_silent_slots_are_found_by_verify(monkeypatch):
    model = tiny_model("bert")
    leaf = model.encoder.layer[1].attention.self.query
    attention = model.encoder.layer[1].attention.self
    monkeypatch.setattr(attention, "query", _Bypass(leaf))
    with pytest.raises(AttachError, match="would never run"):
        hfadapt.attach(model, "lora")
    with pytest.raises(AttachError, match="not seen in this forward pass"):
        hfadapt.attach(model, "low_rank")
    assert "_hfadapt" not in model.__dict__


class _Bypass(torch.nn.Linear):
    """A linear whose hooks are never called, like ``out_proj`` of ``nn.MultiheadAttention``."""

    def __init__(self, leaf):
        super().__init__(leaf.in_features, leaf.out_features)
        self.load_state_dict(leaf.state_dict())

    def __call__(self, x):
        return self.forward(x)
