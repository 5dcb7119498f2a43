"""A further task makes as many tensors beside a hundred others as beside ten, and its rows run as many ops."""

from __future__ import annotations

import copy

import pytest

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.adapters.restore import meta_copy
from hfadapt.runtime.packing import packed_in
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import saved, text
from tests.unit.engine.many import FAMILIES, METHODS, engine_of, held, model_of, ops_of


def _costs_the_same(new, methods):
    counts = {}
    for count in (12, 102):
        engine = engine_of(count, methods)
        names = [f"t{number}" for number in range(6)]
        before = engine.predict(["w1 w2 w3"] * 6, names)
        engine.predict("w1 w2", "t1")
        counts["predict", count], _ = ops_of(lambda e=engine: e.predict("w1 w2", "t1"))
        counts["together", count], _ = ops_of(lambda e=engine, n=names: e.predict(["w1 w2 w3"] * 6, n))
        counts["add", count], _ = ops_of(lambda e=engine: e.add(new))
        counts["replace", count], _ = ops_of(lambda e=engine: e.replace("new", new))
        counts["remove", count], _ = ops_of(lambda e=engine: e.remove("new"))
        assert engine.predict(["w1 w2 w3"] * 6, names) == before
    for what in ("predict", "together", "add", "replace", "remove"):
        # What a step costs for each of ninety tasks more is less than one op.
        assert counts[what, 102] - counts[what, 12] < 90, counts
    assert counts["add", 12] > 50


def test_a_task_costs_as_many_ops_beside_a_hundred_others_as_beside_ten(new):
    _costs_the_same(new, METHODS)


@pytest.mark.parametrize("method", ["prefix", "pal"])
def test_a_task_whose_layers_share_parameters_costs_as_many_ops_too(base_folder, tmp_path, method):
    folder = saved(base_folder, tmp_path / method, [Task("new", Classification(3))], method, 5)
    _costs_the_same(folder, (method,))


def test_a_trial_copy_has_the_names_of_other_adapters_and_none_of_their_tensors():
    base = engine_of(6).model.base
    twin = meta_copy(base, joins=False)
    assert hfadapt.attachment(twin).names == hfadapt.attachment(base).names
    slots = [m for m in twin.modules() if isinstance(m, hfadapt.Delta)]
    assert slots and all(not [*delta.adapters.parameters()] for delta in slots)
    kept = {key for key, _ in base.named_parameters() if ".hfadapt." not in key}
    assert {key for key, _ in twin.named_parameters()} >= kept
    assert all(parameter.is_meta for parameter in twin.parameters())


def test_a_trial_copy_for_what_joins_adapters_has_all_of_them():
    base = engine_of(6).model.base
    twin = meta_copy(base)
    shapes = {key: parameter.shape for key, parameter in base.named_parameters()}
    assert {key: parameter.shape for key, parameter in twin.named_parameters()} == shapes
    assert all(parameter.is_meta for parameter in twin.parameters())


def ask(engine, numbers):
    engine.predict(["w1 w2 w3"] * len(numbers), [f"t{number}" for number in numbers])


@pytest.mark.parametrize("family", range(len(FAMILIES)))
def test_a_task_takes_the_memory_of_its_own_parameters(base_folder, tmp_path, family):
    engine, method = engine_of(7, FAMILIES), FAMILIES[family]
    folder = saved(base_folder, tmp_path / "new", [Task("new", Classification(3))], method, 5)
    ask(engine, range(7))  # panels are made when they are first needed
    before = held(engine.model)
    engine.add(folder)
    engine.predict(["w1 w2", "w3"], ["new", "t0"])
    engine.predict_all("w1 w2", ["new", "t1"])
    own = hfadapt.parameters_of(engine.model.base, "new").values()
    assert held(engine.model) - before == sum(p.nbytes for p in (*own, *engine.model.heads["new"].parameters()))
    engine.remove("new")
    assert held(engine.model) == before


@pytest.mark.parametrize("count", [120, pytest.param(1000, marks=pytest.mark.thorough)])
def test_many_tasks_of_six_families_answer_as_each_does_alone_and_take_their_own_memory(count):
    """Beside the others, in one batch with them, and in an engine of its own."""
    model, bare = model_of(count, FAMILIES), held(tiny_model("bert"))
    engine, names = Engine(model, tiny_tokenizer()), [f"t{number}" for number in range(count)]
    ask(engine, range(12))
    here = dict(engine.model.base.named_parameters())
    of_the_base = {id(here[name]) for name, _ in tiny_model("bert").named_parameters()}
    bare += sum(one.nbytes for one in packed_in(engine.model) if id(one.weight) in of_the_base)
    own = {id(p): p for name in names for p in hfadapt.parameters_of(engine.model.base, name).values()}
    assert held(engine.model) == bare + sum(p.nbytes for p in (*own.values(), *engine.model.heads.parameters()))
    texts = [text(3 + number % 2, number) for number in range(count)]
    together = engine.predict(texts, names)
    assert together == [engine.predict(one, name)[0] for one, name in zip(texts, names, strict=True)]
    assert len({str(one.scores) for one in together}) == count
    for number in range(len(FAMILIES)):
        base, task = copy.deepcopy(engine.model.base), engine.tasks[number]
        hfadapt.detach(base, [name for name in names if name != task.name])
        single = MultiTaskModel(engine.model.config, base, [task])
        single.heads[task.name] = engine.model.heads[task.name]
        one = Engine(single, tiny_tokenizer())
        assert one.predict(texts[number], names[number]) == [together[number]]
