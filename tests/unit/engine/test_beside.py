"""A change of the tasks comes about beside the rows that are served: they wait for a swap, and for nothing else."""

from __future__ import annotations

import contextlib
import functools
import gc
import sys
import threading
import weakref

import pytest
import torch

import hfadapt
from hfadapt import Classification, MultiTaskModel, Task
from hfadapt.adapters.beside import beside
from hfadapt.errors import CheckpointError, DataError, TaskError
from hfadapt.inference import engine as engine_file
from hfadapt.testing.tiny import tiny_model
from tests.unit.engine.case import REQUESTS, TASKS, ask, saved
from tests.unit.engine.many import Ops, engine_of


class Alone:
    """Records what runs while an engine's lock is held alone: tensors' work, calls of functions, files that open."""

    def __init__(self, engine, monkeypatch):
        self.ops, self.calls, stock = [], [], engine._lock.alone

        @contextlib.contextmanager
        def alone():
            names = []

            def told(frame, event, arg):
                if event == "call":
                    names.append(frame.f_code.co_qualname)
                elif event == "c_call":
                    names.append(arg.__qualname__)

            with stock(), Ops() as ops:
                sys.setprofile(told)
                try:
                    yield
                finally:
                    sys.setprofile(None)
            self.ops.append(ops.count)
            self.calls.append(names)

        monkeypatch.setattr(engine._lock, "alone", alone)


@pytest.fixture(scope="module")
def prefix(base_folder):
    """A task of a method that changes attention, which nothing in the engine's model does."""
    return saved(base_folder, base_folder.parent / "prefix", [Task("prefix", Classification(3))], "prefix", 4)


def test_rows_wait_for_no_file_no_forward_and_no_tensor(new, prefix, monkeypatch):
    calls = {}
    for count in (6, 60):
        engine = engine_of(count)
        alone = Alone(engine, monkeypatch)
        for folder in (new, prefix):
            (name,) = engine.add(folder)
            engine.replace(name, folder)
            engine.remove(name)
        assert alone.ops == [0] * 6
        for names in alone.calls:
            assert not [name for name in names if "open" in name or "read" in name or "forward" in name]
        calls[count] = [len(names) for names in alone.calls]
    # As few, and as many, however many tasks there are.
    assert calls[6] == calls[60] and max(calls[60]) < 100, calls


def test_texts_are_answered_from_what_was_there_while_a_folder_is_read(engine, alone, further, prefix, monkeypatch):
    """In the midst of each change another thread asks: it gets an answer, and the old one."""
    stock, seen = engine_file.add_folder, []

    def asked():
        seen.append((ask(engine, REQUESTS[:14]), [task.name for task in engine.tasks]))

    def read_and_asked(*args):
        added = stock(*args)
        thread = threading.Thread(target=asked)
        thread.start()
        thread.join(60)
        return added

    monkeypatch.setattr(engine_file, "add_folder", read_and_asked)
    names = [task.name for task in TASKS]
    engine.add(further)
    engine.add(prefix)
    engine.replace("kind", further, head=None)
    assert seen == [(alone[:14], names), (alone[:14], [*names, "more"]), (alone[:14], [*names, "more", "prefix"])]
    left = [i for i in range(14) if REQUESTS[i][1] != "kind"]
    assert ask(engine, [REQUESTS[i] for i in left]) == [alone[i] for i in left]
    assert engine.predict("w1 w2", "kind")[0].scores == engine.predict("w1 w2", "more")[0].scores


@pytest.mark.parametrize("fails", ["read", "held", "taken up", "old one removed", "swap worked out"])
def test_a_change_that_fails_at_any_point_leaves_everything_as_it_was(engine, alone, prefix, monkeypatch, fails):
    def raises(*args, **options):
        raise OSError("no more memory")

    where = {
        "read": (engine_file, "add_folder"),
        "held": (engine_file.Source, "holds"),
        "taken up": (engine_file, "pack_served"),
        "old one removed": (MultiTaskModel, "remove_task"),
        "swap worked out": (engine_file, "served_tasks"),
    }
    model, base = engine.model, engine.model.base
    before = {name: id(tensor) for name, tensor in model.named_parameters()}
    attention, modules = base.config._attn_implementation, [id(module) for module in model.modules()]
    with monkeypatch.context() as patch:
        patch.setattr(*where[fails], raises)
        with pytest.raises(OSError, match="no more memory"):
            engine.replace("topic", prefix)
    assert engine.model is model and model.base is base and base.config._attn_implementation == attention
    assert {name: id(tensor) for name, tensor in model.named_parameters()} == before
    assert [id(module) for module in model.modules()] == modules
    assert [task.name for task in engine.tasks] == [task.name for task in TASKS] and engine.changed() == ()
    assert ask(engine, REQUESTS[:7]) == alone[:7]
    engine.replace("topic", prefix)
    assert ask(engine, REQUESTS[1:7]) == alone[1:7]


def test_two_changes_at_once_are_made_one_after_the_other(engine, alone, further):
    found = []
    threads = [
        threading.Thread(target=lambda name=name: found.extend(engine.add(further, called=name))) for name in "abc"
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found) == ["a", "b", "c"] and len(engine.tasks) == len(TASKS) + 3
    assert ask(engine, REQUESTS[:7]) == alone[:7]


def test_a_copy_beside_has_the_models_tensors_and_leaves_it_as_it_was():
    model = engine_of(6).model.base
    inputs = {"input_ids": torch.randint(4, 90, (2, 9)), "task_ids": ["t1", "t2"]}
    before, keys = model(**inputs)[0], [*model.state_dict()]
    twin = beside(model)
    assert all(one is other for one, other in zip(model.parameters(), twin.parameters(), strict=True))
    assert torch.equal(twin(**inputs)[0], before)
    hfadapt.attach(twin, "prefix", "new", seed=0)
    hfadapt.detach(twin, "t3")
    assert hfadapt.attachment(model).names == tuple(f"t{i}" for i in range(6))
    assert [*model.state_dict()] == keys and model.config._attn_implementation != twin.config._attn_implementation
    assert torch.equal(model(**inputs)[0], before) and torch.equal(twin(**inputs)[0], before)


def test_hooks_of_others_go_on_being_called(engine, further):
    class Meter:
        def __deepcopy__(self, memo):
            raise TypeError("a meter is one")

        def __init__(self):
            self.seen = []

        def __call__(self, module, args):
            self.seen.append(module)

    meter, layer = Meter(), engine.model.base.encoder.layer[0]
    layer.register_forward_pre_hook(meter)
    layer.register_forward_pre_hook(functools.partial(lambda owner, module, args: meter.seen.append(owner), layer))
    engine.add(further)
    engine.predict("w1 w2", "more")
    assert {*meter.seen} == {engine.model.base.encoder.layer[0]} and layer not in meter.seen


def test_a_dictionary_that_grows_while_it_is_copied_is_copied_again():
    class Growing:
        left = 2

        def __deepcopy__(self, memo):
            Growing.left -= 1
            if Growing.left >= 0:
                raise RuntimeError("dictionary changed size during iteration")
            return self

    model = tiny_model("bert")
    hfadapt.attach(model, "lora")
    model.growing = Growing()
    assert beside(model).growing is model.growing and Growing.left == -1


def test_a_model_that_nobody_can_copy_is_named_and_goes_on(engine, alone, further):
    engine.model.base.lock = threading.Lock()
    with pytest.raises(CheckpointError, match="cannot be copied"):
        engine.add(further)
    with pytest.raises(CheckpointError, match="cannot be copied"):
        engine.remove("topic")
    assert ask(engine, REQUESTS[:7]) == alone[:7]


def test_what_a_task_took_is_free_once_it_is_gone(engine, further, prefix):
    gone = []
    gc.disable()
    try:
        for folder in (further, prefix):
            (name,) = engine.add(folder)
            own = hfadapt.parameters_of(engine.model.base, name).values()
            gone += [weakref.ref(parameter) for parameter in (*own, *engine.model.heads[name].parameters())]
            del own
            engine.predict("w1 w2", name)
            engine.remove(name)
        assert gone and not [one for one in gone if one() is not None]
    finally:
        gc.enable()


def test_unknown_tasks_are_refused_before_anything_is_copied(engine, further, monkeypatch):
    monkeypatch.setattr(engine_file, "model_beside", None)
    for change in (lambda: engine.remove("topics"), lambda: engine.replace("topics", further)):
        with pytest.raises(DataError, match="no task 'topics'"):
            change()
    with pytest.raises(TaskError, match="topic"):
        engine.add(further, called="topic")
