"""Compositions are checked when they are built, and become steps."""

import pytest

from hfadapt import Arrow, Average, Fuse, Parallel, Stack
from hfadapt.errors import CompositionError
from hfadapt.routing import steps
from hfadapt.routing.composition import adapter_names, parse, to_json
from hfadapt.routing.steps import plan


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: Stack(), "Stack has no children"),
        (lambda: Fuse("a"), "at least two different adapters"),
        (lambda: Fuse("a", "a"), "at least two different adapters"),
        (lambda: Fuse(Stack("a"), "b"), "Fuse cannot hold Stack"),
        (lambda: Stack(Stack("a")), "Stack cannot hold Stack"),
        (lambda: Stack(Parallel("a", "b")), "Stack cannot hold Parallel"),
        (lambda: Average("a", "b", weights=[1.0]), "one weight a child; got: \\[1.0\\]; allowed: 2"),
        (lambda: parse({"stock": ["a"]}), "not a composition"),
    ],
)
def test_invalid_trees_are_refused_when_built(build, message):
    with pytest.raises(CompositionError, match=message):
        build()


@pytest.mark.parametrize(
    "tree",
    ["a", Stack("a", Fuse("b", "c")), Average("a", "b", weights=(0.2, 0.8)), Parallel(Stack("b", Arrow("c", "d")))],
    ids=repr,
)
def test_trees_survive_json(tree):
    assert parse(to_json(tree)) == tree


def test_equality_is_by_structure():
    assert Stack("a", "b") == Stack("a", "b") != Stack("b", "a")
    assert Average("a", "b") != Average("a", "b", weights=(0.9, 0.1))
    assert list(adapter_names(Parallel("a", Stack("b", Fuse("c", "d"))))) == ["a", "b", "c", "d"]


def test_plan_of_plain_adapters_is_one_step():
    (step,) = plan(["a", "b"])
    assert step == steps.Select(("a", "b"), (0, 1))


def test_plan_of_stacks_runs_depth_by_depth():
    first, second = plan(["a", Stack("b", "a")])
    assert (first.names, first.table) == (("a", "b"), (0, 1))
    assert (second.names, second.table) == (("a",), (-1, 0))


def test_plan_keeps_kinds_apart():
    planned = plan(["a", Fuse("a", "b"), Average("a", "b")])
    assert [type(step) for step in planned] == [steps.Select, steps.Fuse, steps.Average]
    assert [step.table for step in planned] == [(0, -1, -1), (-1, 0, -1), (-1, -1, 0)]


def test_parallel_cannot_be_chosen_per_row():
    with pytest.raises(CompositionError, match="cannot be nested or chosen per row"):
        plan([Parallel("a", "b")])
