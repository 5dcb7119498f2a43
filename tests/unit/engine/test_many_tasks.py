"""A further task makes as many tensors beside a hundred others as beside ten, and its rows run as many ops."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.adapters.restore import meta_copy
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import saved

# Whose layers share nothing: what an adapter's layers share stands at the root, and is still looked through.
METHODS = (hfadapt.LoRA(r=2), hfadapt.Pfeiffer(reduction_factor=8), hfadapt.LoRA(r=4, layers=(1,)))


class Ops(TorchDispatchMode):
    """Counts what torch runs, empty tensors and copies among it."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        return func(*args, **(kwargs or {}))


def ops_of(call):
    with Ops() as ops:
        found = call()
    return ops.count, found


def engine_of(count):
    """An engine of ``count`` tasks, of each method in turn."""
    base = tiny_model("bert")
    tasks = [Task(f"t{number}", Classification(2)) for number in range(count)]
    for number, task in enumerate(tasks):
        hfadapt.attach(base, METHODS[number % len(METHODS)], task.name, verify=False, train_head=False)
    config = MultiTaskModel.from_base(tiny_model("bert"), tasks).config
    model = MultiTaskModel(config, base, tasks)
    torch.manual_seed(3)
    randomize(base)
    return Engine(model, tiny_tokenizer())


@pytest.fixture(scope="module")
def new(tmp_path_factory):
    folder = tmp_path_factory.mktemp("many")
    tiny_model("bert").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    return saved(folder / "base", folder / "new", [Task("new", Classification(3))], hfadapt.LoRA(r=2), 5)


def test_a_task_costs_as_many_ops_beside_a_hundred_others_as_beside_ten(new):
    counts = {}
    for count in (12, 102):
        engine = engine_of(count)
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


def test_a_task_takes_the_memory_of_its_own_parameters(new):
    def held(engine):
        model = engine.model
        tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
        return sum(t.nbytes for t in tensors.values())

    engine = engine_of(9)
    before = held(engine)
    engine.add(new)
    own = hfadapt.parameters_of(engine.model.base, "new").values()
    assert held(engine) - before == sum(p.nbytes for p in (*own, *engine.model.heads["new"].parameters()))
    engine.remove("new")
    assert held(engine) == before
