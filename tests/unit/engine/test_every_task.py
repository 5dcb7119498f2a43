"""Every task on one text: no layer runs more often than it must, and each answer has the bits of its task alone."""

from __future__ import annotations

import functools

import pytest
import torch

import hfadapt
from hfadapt import Classification, Engine, MultiLabel, MultiTaskModel, Regression, Span, Task, TokenClassification
from hfadapt.inference import every_task
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import saved, text

LAYERS = {"gpt2": {"n_layer": 4}, "t5": {"num_layers": 4, "num_decoder_layers": 4}}
# Of other families and depths, one folder each.
FOLDERS = {
    "low": ([Task("topic", Classification(3)), Task("score", Regression())], hfadapt.LoRA(r=4)),
    "half": (
        [Task("mood", Classification(2)), Task("labels", MultiLabel(4))],
        hfadapt.Pfeiffer(reduction_factor=4, layers=(2, 3)),
    ),
    "half_lora": ([Task("tags", TokenClassification(3))], hfadapt.LoRA(r=2, layers=(2,))),
    "high": ([Task("kind", Classification(5, inner_size=8))], hfadapt.LoRA(r=2, layers=(3,))),
}
TASKS = ("topic", "score", "mood", "labels", "tags", "kind")
TEXTS = [text(3), text(14, 5), text(40, 2)]


@pytest.fixture(scope="module", params=["bert", "gpt2", "t5"])
def served(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    tiny_model(request.param, **LAYERS.get(request.param, {"num_hidden_layers": 4})).save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for seed, (name, (tasks, method)) in enumerate(FOLDERS.items()):
        saved(folder / "base", folder / name, tasks, method, seed)
    return folder


@pytest.fixture
def engine(served):
    return Engine.from_pretrained([served / name for name in FOLDERS])


class Rows:
    """Counts the rows that each layer of the base really computes."""

    def __init__(self, engine):
        self.seen = {}
        for depth, path in enumerate(hfadapt.attachment(engine.model.base).arch.stacks[0].layer_paths):
            norms = [m for m in engine.model.base.get_submodule(path).modules() if type(m).__name__.endswith("Norm")]
            norms[0].register_forward_pre_hook(functools.partial(self, depth))

    def __call__(self, depth, module, args):
        self.seen[depth] = self.seen.get(depth, 0) + args[0].shape[0]

    def take(self):
        seen, self.seen = self.seen, {}
        return [seen[depth] for depth in sorted(seen)]


def test_each_answer_has_the_bits_of_its_task_alone_and_layers_run_once_below_each_delta(engine):
    alone = [[engine.predict(one, name)[0] for name in TASKS] for one in TEXTS]
    assert [engine.predict_all(one, TASKS) for one in TEXTS] == alone
    rows = Rows(engine)
    for one, want in zip(TEXTS, alone, strict=True):
        for _ in range(2):  # the first time it is shown that rows keep their bits beside one another
            rows.take()
            assert engine.predict_all(one, TASKS[:4] + TASKS[5:]) == want[:4] + want[5:]
        # One that begins at layer 3, two that begin at 2 on the same trunk, and two at 0.
        assert rows.take() == [3, 3, 5, 5]
    hfadapt.set_adapter_drop(engine.model.base, 3)
    dropped = [engine.predict(TEXTS[1], name)[0] for name in TASKS]
    engine.predict_all(TEXTS[1], TASKS[:4])
    rows.take()
    assert engine.predict_all(TEXTS[1], TASKS[:4]) == dropped[:4]
    assert rows.take() == [1, 1, 1, 4]


def test_pieces_of_few_rows_share_one_trunk(engine, monkeypatch):
    names = TASKS[:4] + TASKS[5:]
    whole = engine.predict_all(TEXTS[0], names)
    monkeypatch.setattr(every_task, "TOKENS", 1)
    rows = Rows(engine)
    assert engine.predict_all(TEXTS[0], names) == whole
    assert rows.take() == [3, 3, 5, 5]


def test_tasks_come_and_go_between_two_calls(engine, served):
    before = engine.predict_all(TEXTS[0], TASKS)
    engine.add(served / "high", called="again")
    assert engine.predict_all(TEXTS[0], (*TASKS, "again"))[:-1] == before
    engine.replace("kind", served / "low", "topic")
    found = engine.predict_all(TEXTS[0], TASKS)
    assert found[:-1] == before[:-1] and found[-1].scores == before[0].scores
    engine.remove("mood")
    left = {one.task for one in engine.predict_all(TEXTS[0])}
    assert left == {"topic", "score", "labels", "tags", "kind", "again"}


def test_tasks_on_pairs_and_windows_of_long_contexts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    tiny_model("bert").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    tasks = [Task("same", Classification(2), pair="separate"), Task("span", Span()), Task("joint", Classification(2))]
    saved(folder / "base", folder / "pairs", tasks, hfadapt.LoRA(r=2, layers=(1,)))
    engine = Engine.from_pretrained(folder / "pairs")
    question, context = "w1 w2", text(150)
    alone = [engine.predict(question, task.name, context)[0] for task in tasks]
    assert engine.predict_all(question, [task.name for task in tasks], context) == alone


def test_heads_alone_share_the_whole_base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    tiny_model("bert").save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    tasks = [Task("a", Classification(2)), Task("b", Regression()), Task("c", MultiLabel(3))]
    MultiTaskModel.from_pretrained(str(folder / "base"), tasks=tasks).save_pretrained(folder / "heads")
    engine = Engine.from_pretrained(folder / "heads")
    alone = [engine.predict("w1 w2 w3", name)[0] for name in "abc"]
    engine.predict_all("w1 w2 w3", ["a", "b", "c"])  # shows, once, that rows keep their bits beside one another
    seen = []
    engine.model.base.register_forward_pre_hook(
        lambda _, args, call: seen.append(len(call["input_ids"])), with_kwargs=True
    )
    assert engine.predict_all("w1 w2 w3", ["a", "b", "c"]) == alone and seen == [1]
