"""The checks of the sweep find what is wrong: each is given a fault that it must see."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import hfadapt
from hfadapt.errors import RoutingError
from hfadapt.testing import type_checks
from hfadapt.testing.every_type import tiny_of_type
from hfadapt.testing.type_checks import METHODS, stock_inputs, try_method

INPUTS = {"x": torch.arange(12, dtype=torch.float32).reshape(3, 4).square() / 10}
SHIFT = {"one": 1.0, "two": 2.0}


def _outputs(x, task_ids=None, *, wrong=(), mixes=False, shows=1.0, beside=False):
    """A model whose adapters shift rows; `wrong` rows get the other adapter's shift."""
    names: list[Any] = [task_ids] * 3 if isinstance(task_ids, str) else task_ids or [None] * 3
    other = {"one": "two", "two": "one", None: None}
    names = [other[name] if row in wrong and not isinstance(task_ids, str) else name for row, name in enumerate(names)]
    shift = torch.tensor([SHIFT.get(name, 0.0) for name in names])[:, None]
    made = x + shows * shift
    if mixes:  # half of every row is made of all rows, as the likeness of an image to every caption is
        made = torch.cat([made[:, :2], made[:, 2:].mean(0, keepdim=True).expand(3, 2)], 1)
    return {"of the base": x.clone(), "rows": made} if beside else {"rows": made}


def _rows(model, adapted):
    alone = {name: type_checks._outputs(adapted, INPUTS, task_ids=name) for name in SHIFT}
    return type_checks._check_rows(model, adapted, INPUTS, alone)


def _check(wrong=(), **how):
    return _rows(lambda x: _outputs(x, **how), lambda x, task_ids: _outputs(x, task_ids, wrong=wrong, **how))


@pytest.mark.parametrize("how", [{}, {"mixes": True}, {"beside": True}, {"shows": 1e-3}])
def test_right_rows_pass_and_a_row_of_another_adapter_does_not(how):
    """Also where the model mixes rows, where the first output shows no adapter, and where adapters do little."""
    assert _check(**how) is None
    for row in range(3):
        with pytest.raises(AssertionError, match=f"row {row} of a mixed batch differs"):
            _check(wrong=(row,), **how)


def test_entries_that_are_of_the_row_alone_must_show_its_adapter():
    """What the model makes of other rows is left out of the comparison; the rest must not be the base's."""

    def outputs(x, task_ids=None):
        made = _outputs(x, task_ids, mixes=True)["rows"]
        return {"rows": torch.cat([x[:, :2], made[:, 2:]], 1)}

    with pytest.raises(AssertionError, match="shows no adapter"):
        _rows(outputs, outputs)


def test_a_model_none_of_whose_outputs_can_be_compared_is_not_ok():
    """As long as its content, so that mixed rows have another shape: nothing was looked at."""

    def outputs(x, task_ids=None):
        made = _outputs(x, task_ids)["rows"]
        return {"sound": made if isinstance(task_ids, str) else torch.nn.functional.pad(made, (0, 1))}

    with pytest.raises(AssertionError, match="no output shows which adapter.*sound"):
        _rows(outputs, outputs)


def test_a_batch_that_cannot_be_mixed_says_why():
    def refuses(x, task_ids=None):
        raise RoutingError("rows cannot be told apart", where="here", got="x", allowed="y", try_="z")

    assert "told apart" in str(type_checks._check_rows(_outputs, refuses, INPUTS, {}))


@pytest.mark.parametrize("model_type", ["gpt2", "clipseg"])
def test_a_delta_that_gives_a_row_to_another_adapter_is_found(monkeypatch, model_type):
    """Swapped inside a real model: of one whose rows are texts, and of one that puts every text beside every image."""
    from hfadapt_plugins.methods.shared import UpDownDelta

    model = tiny_of_type(model_type)
    inputs = stock_inputs(model)
    assert try_method(model, inputs, METHODS["bottleneck"]()).verdict == "ok"
    right, attach = UpDownDelta.all_weights_of, hfadapt.attach

    def attach_and_swap(*given, **more):
        handle = attach(*given, **more)  # which would refuse a delta that swaps already
        monkeypatch.setattr(UpDownDelta, "all_weights_of", lambda self, names: right(self, names[::-1]))
        return handle

    monkeypatch.setattr(hfadapt, "attach", attach_and_swap)
    found = try_method(model, inputs, METHODS["bottleneck"]())
    assert found.verdict == "wrong", found
    assert "mixed batch differs" in found.reason


def test_what_passes_through_batch_norms_of_a_tiny_model_is_of_their_size():
    """A MobileViT whose norms never saw data makes its input smaller at every stage, down to nothing in float32."""
    model = tiny_of_type("mobilevit")
    inputs = stock_inputs(model)
    with torch.no_grad():
        first = model(**inputs).last_hidden_state
        second = model(**{**inputs, "pixel_values": inputs["pixel_values"] + 0.5}).last_hidden_state
    assert (first - second).abs().max() > 1e-3
    assert try_method(model, inputs, METHODS["bottleneck"]()).verdict == "ok"


def test_key_heads_are_as_many_as_value_heads_where_the_model_needs_that():
    model = tiny_of_type("nemotron3_diarization")
    widths = {
        model.get_submodule(f"audio_tower.layers.0.self_attn.{name}").out_features for name in ("k_proj", "v_proj")
    }
    assert len(widths) == 1
