"""Engines of many tasks of several methods, and a count of what torch runs, for the tests of engines."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.runtime.packing import packed_in
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer

METHODS = (hfadapt.LoRA(r=2), hfadapt.Pfeiffer(reduction_factor=8), hfadapt.LoRA(r=4, layers=(1,)))
# The layers of an adapter share parameters in the last three, which stand at the model's root.
FAMILIES = (hfadapt.LoRA(r=2), hfadapt.Pfeiffer(reduction_factor=8), "par_bn", "prefix", "mam", "pal")


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


def model_of(count, methods=METHODS):
    """A model of ``count`` tasks, of each method in turn, the weights of each their own."""
    torch.manual_seed(0)
    base = tiny_model("bert")
    tasks = [Task(f"t{number}", Classification(2)) for number in range(count)]
    for number, task in enumerate(tasks):
        hfadapt.attach(base, methods[number % len(methods)], task.name, verify=False, train_head=False)
    model = MultiTaskModel(MultiTaskModel.from_base(tiny_model("bert"), tasks).config, base, tasks)
    torch.manual_seed(3)
    randomize(base)
    return model


def engine_of(count, methods=METHODS):
    """An engine of such a model."""
    return Engine(model_of(count, methods), tiny_tokenizer())


def held(model):
    """Bytes of a model's tensors, and of what its linears were packed into."""
    tensors = {id(t): t.nbytes for t in (*model.parameters(), *model.buffers())}
    return sum(tensors.values()) + sum({id(one): one.nbytes for one in packed_in(model)}.values())
