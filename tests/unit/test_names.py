"""One name is a name, wherever a list of names is taken: a string is never read letter by letter."""

from __future__ import annotations

import pytest

import hfadapt
from hfadapt import Classification, RobustAdapterDrop, Task
from hfadapt.adapters.save import save
from hfadapt.data.glue import glue_tasks
from hfadapt.errors.names import names_of
from hfadapt.testing.tiny import tiny_model


@pytest.mark.parametrize("given", ["ab", ["ab"], ("ab",), {"ab"}, iter(["ab"])])
def test_a_name_and_a_list_of_one_are_the_same(given) -> None:
    assert names_of(given) == ("ab",)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (lambda: RobustAdapterDrop(stacks="encoder").stacks, ("encoder",)),
        (lambda: Task("t", Classification(2), metrics="f1").metrics, ("f1",)),
        (lambda: [task.name for task in glue_tasks("cola")], ["cola"]),
    ],
    ids=["stacks", "metrics", "glue"],
)
def test_one_name_where_a_list_is_taken(found, expected) -> None:
    assert found() == expected


def test_attach_save_and_detach_take_one_name(tmp_path) -> None:
    model = tiny_model("bert")
    hfadapt.attach(model, "lora", names="ab")
    hfadapt.attach(model, "lora", names=["a", "b"])
    assert list(hfadapt.attachment(model).names) == ["ab", "a", "b"]
    hfadapt.detach(model, "ab")
    assert list(hfadapt.attachment(model).names) == ["a", "b"]
    with pytest.raises(hfadapt.HFAdaptError, match="'ab'"):
        save(model, tmp_path / "x", "ab")
