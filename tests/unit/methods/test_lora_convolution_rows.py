"""Rows of several adapters at a convolution: frames in place of rows, rows where channels lie, and the same bits."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing.conformance import randomize


class Film(nn.Module):
    """Frames of a row, read by one convolution: a row's side by side, or all rows' first frames before the second."""

    def __init__(self, frames_first):
        super().__init__()
        self.config = SimpleNamespace(model_type="film")
        self.front = nn.Conv2d(3, 8, 3)
        self.frames_first = frames_first

    def forward(self, film):
        film = film.transpose(0, 1) if self.frames_first else film
        found = self.front(film.flatten(0, 1)).flatten(2).mean(-1).unflatten(0, film.shape[:2])
        return found.transpose(0, 1) if self.frames_first else found


def film(frames_first):
    torch.manual_seed(0)
    model = Film(frames_first).double().eval()
    for name in ("a", "b"):
        hfadapt.attach(model, hfadapt.LoRA(2, 3.0, ("front",), init="normal"), name, train_head=False, verify=False)
    randomize(model)
    return model, torch.randn(4, 5, 3, 6, 6).double()


def test_frames_of_a_row_side_by_side_are_its_adapters():
    model, given = film(False)
    mixed = model(given, task_ids=["a", "b", None, "a"])
    for row, name in ((0, "a"), (1, "b"), (3, "a")):
        torch.testing.assert_close(mixed[row], model(given, task_ids=name)[row], rtol=0, atol=1e-12)
    assert torch.equal(mixed[2], model(given, task_ids=[None] * 4)[2])


def test_frames_of_all_rows_in_turn_take_one_adapter_a_batch_and_say_so():
    model, given = film(True)
    with pytest.raises(RoutingError, match="front: rows of different adapters cannot be told apart"):
        model(given, task_ids=["a", "b", None, "a"])
    want = model(given, task_ids="a")
    hfadapt.detach(model, ["b"])
    hfadapt.merge(model, "a")
    torch.testing.assert_close(model(given), want, rtol=0, atol=1e-12)


def test_rows_that_lie_where_the_channels_do_are_mixed_by_the_base():
    class Columns(nn.Module):
        def __init__(self):
            super().__init__()
            self.config = SimpleNamespace(model_type="net")
            self.front = nn.Conv1d(4, 8, 3)

        def forward(self, sound):
            return self.front(sound.transpose(0, 1)).mean((0, 2)).expand(len(sound), -1)

    torch.manual_seed(0)
    model = Columns().double()
    for name in ("a", "b"):
        hfadapt.attach(model, hfadapt.LoRA(target_modules=("front",)), name, train_head=False, verify=False)
    with pytest.raises(RoutingError, match="cannot be told apart"):
        model(torch.randn(4, 7, 6).double(), task_ids=["a", "b", "a", "b"])


def test_a_row_has_the_same_bits_whoever_its_neighbours_are():
    """torch takes another way through a convolution of one row than of two."""
    for made, shape in ((lambda: nn.Conv1d(8, 48, 3, padding=1), (8, 50)), (lambda: nn.Conv2d(16, 32, 3), (16, 12, 9))):
        torch.manual_seed(0)
        model = nn.Sequential(made())
        model.config = SimpleNamespace(model_type="net")
        for name in ("a", "b"):
            hfadapt.attach(model, hfadapt.LoRA(8, 3.0, ("0",), init="normal"), name, train_head=False, verify=False)
        given = torch.randn(6, *shape)
        with torch.no_grad():
            rows = [
                model(given, task_ids=["a", *others])[0]
                for others in (["a"] * 5, ["b"] * 5, [None] * 5, ["b", "a", "b", None, "b"])
            ]
        assert all(torch.equal(rows[0], row) for row in rows[1:])
