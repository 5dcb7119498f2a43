"""Rows of several adapters in models that nobody mapped: found wherever they lie, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import RoutingError
from tests.unit.own_model import WIDTH, Own, assert_rows_are_their_adapters, lora, own, tokens


class Windows(Own):
    """Looks at three windows of each row, as Swin does: B * 3 rows, a row's windows side by side."""

    def forward(self, tokens):
        x = self.words(tokens).unflatten(1, (3, 2)).flatten(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.score(x.unflatten(0, (-1, 3)).flatten(1, 2))


class Flat(Own):
    """Reads all tokens of the batch as one list."""

    def forward(self, tokens):
        x = self.words(tokens)
        return self.score(self.blocks[0].mix(x.flatten(0, 1)).view_as(x))


class TimeFirst(Own):
    """Puts time before the batch, as XLNet does, and views what a module returns as one list of tokens."""

    def forward(self, tokens):
        x = self.words(tokens).transpose(0, 1)
        for block in self.blocks:
            x = x + block.mix(x).view(-1, WIDTH).view_as(x).cumsum(0) / 7
            x = x + block.down(torch.tanh(block.up(x)))
        return self.score(x.transpose(0, 1))


class Mixing(Own):
    """Adds up what other rows of the batch hold."""

    def forward(self, tokens):
        return self.score(self.blocks[0](self.words(tokens).transpose(0, 1)).transpose(0, 1))


class Picky(TimeFirst):
    """Takes texts of six tokens."""

    def forward(self, tokens):
        if tokens.shape[1] != 6:
            raise ValueError("six tokens")
        return super().forward(tokens)


class Queries(Own):
    """Begins with vectors that are the same for every row, as DETR's decoder does."""

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(1, 6, WIDTH))

    def forward(self, tokens):
        x = self.blocks[0](self.queries.expand(len(tokens), -1, -1))
        return self.score(self.blocks[1](x + self.words(tokens)))


class Table(Own):
    """Projects one table of positions for the whole batch, as long as six rows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(6, WIDTH))

    def forward(self, tokens):
        return self.score(self.words(tokens) + self.blocks[0].mix(self.table))


class Experts(Own):
    """Sends every token to one of three experts, which reads what all rows sent to it."""

    def forward(self, tokens):
        x = self.words(tokens)
        flat, out = x.flatten(0, 1), torch.zeros_like(x).flatten(0, 1)
        chosen = tokens.flatten() % 3
        for number, expert in enumerate(self.blocks):
            mine = (chosen == number).nonzero().flatten()
            out = out.index_copy(0, mine, expert.up(flat[mine])[..., :WIDTH])
        return self.score(x + out.view_as(x))


@pytest.mark.parametrize("verify", [True, False], ids=["verified", "on-trust"])
@pytest.mark.parametrize("kind", [Windows, Flat, Queries, TimeFirst])
def test_rows_are_found_wherever_the_batch_comes_first_or_second(kind, verify):
    model = own(kind=kind)
    hfadapt.attach(model, lora("all-linear"), names=["a", "b"], verify=verify)
    assert_rows_are_their_adapters(model, tokens())
    assert_rows_are_their_adapters(model, tokens(6), "abbaba")  # as many rows as tokens


def test_rows_on_the_second_axis_are_trained_and_saved(tmp_path):
    model, stock = own(kind=TimeFirst), own(kind=TimeFirst)
    hfadapt.attach(model, lora("all-linear", dropout=0.3), names=["a", "b"])
    given = tokens()
    model.train()

    def gradients(rows, names):
        model.zero_grad()
        torch.manual_seed(3)
        model(given[:rows], task_ids=names)[:1].square().sum().backward()
        return {name: p.grad.clone() for name, p in hfadapt.parameters_of(model, "a").items()}

    alone, mixed = gradients(1, ["a"]), gradients(3, ["a", "b", "a"])
    for name, gradient in alone.items():  # what is dropped of a row does not depend on its neighbours
        torch.testing.assert_close(mixed[name], gradient, rtol=0, atol=1e-12)
    hfadapt.save(model, tmp_path)
    again = hfadapt.load(tmp_path, stock).eval()
    assert torch.equal(again(given, task_ids=["b", "a", "b"]), model.eval()(given, task_ids=["b", "a", "b"]))


def test_a_call_that_fails_does_not_keep_the_next_from_telling_rows_apart():
    model = own(kind=Picky)
    hfadapt.attach(model, lora("all-linear"), names=["a", "b"], verify=False)
    with pytest.raises(ValueError, match="six tokens"):
        model(tokens()[:, :5], task_ids=["a", "b", "a"])
    assert_rows_are_their_adapters(model, tokens())


@pytest.mark.parametrize("rows", [2, 3, 6])
@pytest.mark.parametrize("verify", [True, False], ids=["verified", "on-trust"])
@pytest.mark.parametrize("kind", [Mixing, Table, Experts])
def test_where_rows_cannot_be_told_apart_a_mixed_batch_is_an_error_and_one_adapter_is_not(kind, verify, rows):
    model, given = own(kind=kind), tokens(rows)
    names = {"all-linear"} if kind is not Experts else {"up"}
    hfadapt.attach(model, lora(*names), names=["a", "b"], verify=verify)
    assert not torch.allclose(model(given, task_ids="a"), model(given, task_ids="b"))
    with pytest.raises(RoutingError, match="rows of different adapters cannot be told apart"):
        model(given, task_ids=["a", "b", "a", "b", "b", "a"][:rows])


def test_an_expert_without_a_token_computes_nothing_and_is_no_error():
    model = own(kind=Experts)
    hfadapt.attach(model, lora("up"), "a")
    assert torch.isfinite(model(torch.zeros(2, 6, dtype=torch.long))).all()
