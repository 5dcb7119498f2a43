"""LoRA of tables of vectors: the update of their weight, by row, with every gradient, and what takes none."""

from __future__ import annotations

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import AttachError, RoutingError
from hfadapt.runtime import deltas_of
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model


class Scaled(nn.Embedding):
    """As Gemma's: the factor is a tensor, rounded to the weight's dtype."""

    def __init__(self, *sizes, **more):
        super().__init__(*sizes, **more)
        self.embed_scale = nn.Buffer(torch.tensor(3.3), persistent=False)

    def forward(self, ids):
        return super().forward(ids) * self.embed_scale.to(self.weight.dtype)


class Positions(nn.Embedding):
    """As BART's: it makes other ids of those that it is given."""

    def forward(self, ids):
        return super().forward(ids + 2)


class Shifted(Scaled):
    """It says that it multiplies, and adds."""

    def forward(self, ids):
        return super().forward(ids) + 1


class Net(nn.Module):
    """A table whose vectors a linear reads; ``look`` says with which ids it is asked."""

    def __init__(self, table, look=None):
        super().__init__()
        self.config = SimpleNamespace(model_type="net")
        self.words = table
        self.score = nn.Linear(8, 4)
        self.look = look

    def forward(self, ids):
        found = self.words(ids) if self.look is None else self.look(self.words, ids)
        return self.score(found).tanh()


TABLES = {
    "plain": lambda: nn.Embedding(20, 8),
    "padding": lambda: nn.Embedding(20, 8, padding_idx=3),
    "sparse": lambda: nn.Embedding(20, 8, sparse=True),
    "scaled": lambda: Scaled(20, 8, padding_idx=3),
}


def net(kind="plain", look=None):
    torch.manual_seed(0)
    return Net((TABLES[kind] if isinstance(kind, str) else kind)(), look).double().eval()


def ids(rows=4):
    made = torch.randint(0, 20, (rows, 6), generator=torch.Generator().manual_seed(1))
    made[:, -2:] = 3
    return made


def adapted(kind="plain", names=("a", "b"), look=None, **more):
    model = net(kind, look)
    for number, name in enumerate(names):
        config = hfadapt.LoRA(2 + number, 3.0 + number, ("words", "score"), init="normal", **more)
        hfadapt.attach(model, config, name, train_head=False, verify=False)
    randomize(model)
    return model


def by_hand(model, kind, name, given, look=None):
    """The model with the update in the weights, as a function of the adapter's own tensors."""
    stock = net(kind, look)
    tensors = dict(stock.named_parameters())
    for path, delta in deltas_of(model, name):
        own, leaf = delta.own(name), path.partition(".hfadapt.")[0]
        update = own.config.scale * own.lora_b @ own.lora_a
        tensors[f"{leaf}.weight"] = tensors[f"{leaf}.weight"] + (update.T if leaf == "words" else update)
    return torch.func.functional_call(stock, tensors, (given,))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("kind", TABLES)
def test_rows_and_gradients_are_those_of_the_updated_weights(kind, rslora):
    if kind == "sparse":  # which torch differentiates by the weight itself alone
        kind, model = "plain", adapted("sparse", use_rslora=rslora)
    else:
        model = adapted(kind, use_rslora=rslora)
    given, stock = ids(), net(kind)(ids())
    mixed = model(given, task_ids=["a", None, "b", "a"])
    assert torch.equal(mixed[1], stock[1])
    want = torch.stack([by_hand(model, kind, name, given)[row] for row, name in ((0, "a"), (2, "b"), (3, "a"))])
    torch.testing.assert_close(mixed[[0, 2, 3]], want, rtol=0, atol=1e-12)
    assert not torch.allclose(want, stock[[0, 2, 3]], atol=1e-4)
    trained = list(hfadapt.trainable_parameters(model).values())
    for mine, theirs in zip(
        torch.autograd.grad(mixed[[0, 2, 3]].square().sum(), trained),
        torch.autograd.grad(want.square().sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_the_vector_of_padding_gets_no_gradient():
    model = adapted("padding")
    model(ids(), task_ids="a").square().sum().backward()
    grad = next(delta.own("a").lora_a.grad for path, delta in deltas_of(model, "a") if path.startswith("words."))
    assert grad[:, 3].eq(0).all() and grad.any()


@pytest.mark.parametrize("kind", TABLES)
def test_detached_merged_unmerged_saved_and_loaded(kind, tmp_path):
    model, given = adapted(kind), ids()
    before = copy.deepcopy(net(kind).state_dict())
    want = model(given, task_ids="a")
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, net(kind))
    assert torch.equal(again(given, task_ids="b"), model(given, task_ids="b"))
    hfadapt.detach(again, ["b"])
    merged = hfadapt.merge(again)
    torch.testing.assert_close(again(given), want, rtol=0, atol=1e-12)
    merged.unmerge()
    assert torch.equal(again(given), want)
    hfadapt.detach(model, ["a", "b"])
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert model.state_dict().keys() == before.keys() and torch.equal(model(given), net(kind)(given))


def test_a_rounded_factor_multiplies_the_update_as_the_weight():
    """25.298 is 25.25 in bfloat16; the update is computed in float32, with the factor that the base has."""
    model = net(lambda: Scaled(20, 8)).bfloat16()
    nn.init.zeros_(model.words.weight)
    model.words.embed_scale = torch.tensor(640**0.5)
    model.score = nn.Identity()
    hfadapt.attach(model, hfadapt.LoRA(2, 2.0, ("words",), init="normal"), "a", train_head=False)
    randomize(model)
    given = ids()
    out, update = model(given), next(iter(deltas_of(model, "a")))[1].own("a")
    want = ((update.lora_b @ update.lora_a).T[given] * torch.tensor(640**0.5).bfloat16()).bfloat16().tanh()
    torch.testing.assert_close(out, want, rtol=0, atol=0)


def test_a_factor_that_a_plain_table_carries_multiplies_nothing():
    model, given = adapted(), ids()
    model.words.embed_scale = 5.0
    torch.testing.assert_close(model(given, task_ids="a"), by_hand(model, "plain", "a", given), rtol=0, atol=1e-12)


def _one_id_a_row(words, given):
    return words(given[:, 0])


def _one_list(words, given):
    return words(given.flatten()).view(*given.shape, -1)


def _three_axes(words, given):
    return words(given.view(len(given), 3, 2)).sum(2)


def _time_first(words, given):
    return words(given.T).transpose(0, 1)


@pytest.mark.parametrize("look", [_one_id_a_row, _one_list, _three_axes, _time_first])
def test_rows_are_found_in_ids_of_any_shape(look):
    model, given = adapted(look=look), ids()
    mixed = model(given, task_ids=["a", None, "b", "a"])
    for row, name in ((0, "a"), (2, "b"), (3, "a")):
        torch.testing.assert_close(mixed[row], by_hand(model, "plain", name, given, look)[row], rtol=0, atol=1e-12)
    assert torch.equal(mixed[1], net("plain", look)(given)[1])
    torch.testing.assert_close(
        model(given, task_ids="b"), by_hand(model, "plain", "b", given, look), rtol=0, atol=1e-12
    )


def _numbers(words, given):
    return words(given) + words(torch.arange(given.shape[1]))


def _one_row_of_numbers(words, given):
    return words(torch.arange(given.shape[1])[None]).expand(len(given), -1, -1)


def _distances(words, given):
    places = torch.arange(given.shape[1])
    return words((places[:, None] - places).abs()).sum(0).expand(len(given), -1, -1)


@pytest.mark.parametrize("look", [_numbers, _one_row_of_numbers, _distances])
def test_what_all_rows_share_takes_one_adapter_a_batch_and_says_so(look):
    model, given = adapted(look=look), ids()
    torch.testing.assert_close(
        model(given, task_ids="a"), by_hand(model, "plain", "a", given, look), rtol=0, atol=1e-12
    )
    with pytest.raises(RoutingError, match="rows of different adapters cannot be told apart"):
        model(given, task_ids=["a", "b", "a", None])


def test_a_row_has_the_same_bits_whoever_its_neighbours_are():
    torch.manual_seed(0)
    model = Net(nn.Embedding(50, 48))
    model.score = nn.Identity()
    for name in ("a", "b"):
        hfadapt.attach(model, hfadapt.LoRA(5, 3.0, ("words",), init="normal"), name, train_head=False, verify=False)
    given = torch.randint(0, 50, (6, 7))
    with torch.no_grad():
        rows = [
            model(given, task_ids=["a", *others])[0] for others in (["a"] * 5, ["b"] * 5, ["a", None, "b", "a", "b"])
        ]
    assert all(torch.equal(rows[0], row) for row in rows[1:])


def test_time_first_has_the_same_bits_before_and_behind_the_first_mixed_batch():
    torch.manual_seed(0)
    model = Net(nn.Embedding(50, 48), _time_first)
    model.score = nn.Identity()
    for name in ("a", "b"):
        hfadapt.attach(model, hfadapt.LoRA(5, 3.0, ("words",), init="normal"), name, train_head=False, verify=False)
    given = torch.randint(0, 50, (3, 7))
    before = model(given, task_ids="a")
    mixed = model(given, task_ids=["a", "b", "a"])
    assert torch.equal(model(given, task_ids="a"), before) and torch.equal(mixed[0], before[0])


def test_adapters_of_tables_are_averaged_and_stacked():
    model, given = adapted(), ids()
    stock = net()
    before = stock.words(given)

    def looked_up(composition):
        with hfadapt.active(model, composition), torch.no_grad():
            return model.words(given) if composition is None else _inside(model, given)

    changed = {name: looked_up(name) - before for name in ("a", "b")}
    want = before + 0.25 * changed["a"] + 0.75 * changed["b"]
    torch.testing.assert_close(looked_up(hfadapt.Average("a", "b", weights=(0.25, 0.75))), want, rtol=0, atol=1e-12)
    torch.testing.assert_close(looked_up(hfadapt.Stack("a", "b")), before + sum(changed.values()), rtol=0, atol=1e-12)


def _inside(model, given):
    """What the linear behind the table reads."""
    seen = []
    handle = model.score.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(given)
    handle.remove()
    return seen[0]


def test_ids_in_a_list_of_tables_are_found_by_name():
    class Codes(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(model_type="codes")
            self.embed_tokens = nn.ModuleList(nn.Embedding(20, 8) for _ in range(2))
            self.score = nn.Linear(8, 4)

        def forward(self, given):
            return self.score(sum(table(given[..., place]) for place, table in enumerate(self.embed_tokens)))

    model = Codes()
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("embed_tokens.1",)), train_head=False, verify=False)
    assert [path.partition(".hfadapt.")[0] for path, _ in deltas_of(model)] == ["embed_tokens.1"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (lambda: nn.Embedding(20, 8, max_norm=1.0), "words: a table takes no update of low rank.*max_norm=1"),
        (lambda: nn.Embedding(20, 8, scale_grad_by_freq=True), "no update of low rank.*scale_grad_by_freq"),
        (lambda: Positions(22, 8), "no update of low rank.*forward of its own in Positions.*NAME.weight"),
        (lambda: Shifted(20, 8), "more than to look vectors up.*other vectors of Shifted.forward"),
    ],
    ids=["max-norm", "frequency", "positions", "shifted"],
)
def test_what_takes_no_update_is_refused_by_its_name(table, message):
    with pytest.raises(AttachError, match=message):
        hfadapt.attach(net(table), hfadapt.LoRA(target_modules=("words",)), train_head=False, verify=False)


def test_a_forward_of_its_own_runs_updated_by_the_name_of_its_parameter():
    model, given = net(lambda: Positions(22, 8)), ids()
    hfadapt.attach(model, hfadapt.LoRA(2, 3.0, ("words.weight",), init="normal"), "a", verify=False, train_head=False)
    own = next(iter(deltas_of(model, "a")))[1].own("a")
    weight = net(lambda: Positions(22, 8)).words.weight
    want = model.score((weight + own.config.scale * (own.lora_b @ own.lora_a)[0])[given + 2]).tanh()
    torch.testing.assert_close(model(given), want, rtol=0, atol=1e-12)


def test_a_table_that_was_resized_is_an_error_of_its_own():
    model = tiny_model("bert", None).eval()
    hfadapt.attach(model, hfadapt.LoRA(target_modules=("word_embeddings",)))
    model.resize_token_embeddings(model.config.vocab_size + 5, mean_resizing=False)
    for call in (lambda: model(**tiny_inputs("bert", None)), lambda: hfadapt.merge(model)):
        with pytest.raises(AttachError, match="word_embeddings.*another number of vectors.*before attach"):
            call()


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "table", "convolution"])
def test_an_update_is_not_folded_into_a_weight_that_is_forgotten_with_the_call(kind, dora):
    made = {"linear": nn.Linear(8, 8), "table": nn.Embedding(20, 8), "convolution": nn.Conv1d(8, 8, 3)}[kind]
    if dora and kind != "linear":
        pytest.skip("no DoRA of it")
    given = ids() if kind == "table" else torch.randn(4, 8, 8).double()
    model = net(lambda: nn.utils.parametrizations.weight_norm(made))
    model.score = nn.Identity()
    hfadapt.attach(model, hfadapt.LoRA(2, 3.0, ("words",), init="normal", dora=dora), train_head=False, verify=False)
    randomize(model)
    want = model(given)
    assert not torch.allclose(want, model(given, task_ids=[None] * 4))
    with pytest.raises(AttachError, match="words: cannot fold.*made of other parameters at every call"):
        hfadapt.merge(model)
    assert torch.equal(model(given), want)


def test_a_misspelt_table_is_told_the_near_name():
    with pytest.raises(AttachError, match=r"tables words.*Did you mean 'words'"):
        hfadapt.attach(net(), hfadapt.LoRA(target_modules=("wrods",)), train_head=False)
    with pytest.raises(AttachError, match=r"tables .*word_embeddings.*Did you mean 'word_embeddings'"):
        hfadapt.attach(tiny_model("bert", None), hfadapt.LoRA(target_modules=("word_embedings", "query")))


def test_convolutions_that_a_name_leaves_out_are_told(caplog):
    model = net()
    model.front = nn.ModuleDict({"score": nn.Conv1d(8, 8, 1)})
    with caplog.at_level(logging.WARNING):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("score",)), train_head=False, verify=False)
    assert "name front.score by its whole path" in caplog.text


def test_a_decoder_writes_with_its_table_as_with_the_updated_one():
    torch.manual_seed(0)
    model = tiny_model("llama", "causal-lm").eval()
    for name in ("a", "b"):
        hfadapt.attach(model, hfadapt.LoRA(4, 8.0, ("embed_tokens", "q_proj"), init="normal"), name)
    randomize(model)
    prompt = tiny_inputs("llama", "causal-lm")["input_ids"][:2]
    both = model.generate(prompt, task_ids=["a", "b"], max_new_tokens=6, do_sample=False)
    for row, name in enumerate(("a", "b")):
        alone = model.generate(prompt[row : row + 1], task_ids=[name], max_new_tokens=6, do_sample=False)
        assert torch.equal(both[row], alone[0])
    hfadapt.detach(model, ["b"])
    hfadapt.merge(model, "a")
    assert torch.equal(model.generate(prompt, max_new_tokens=6, do_sample=False)[0], both[0])


def test_a_frozen_model_with_adapted_tables_is_packed():
    torch.manual_seed(0)
    model = tiny_model("bert", None).eval()
    hfadapt.attach(model, hfadapt.LoRA(4, 8.0, ("word_embeddings", "query"), init="normal"), "a")
    randomize(model)
    given = tiny_inputs("bert", None)
    want = model(**given)[0]
    hfadapt.pack(model)
    torch.testing.assert_close(model(**given)[0], want, rtol=1e-4, atol=1e-5)
    hfadapt.unpack(model)
    assert torch.equal(model(**given)[0], want)
