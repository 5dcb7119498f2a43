"""The engine: a row has the bits that it has alone, whoever shares its batch and whatever comes and goes meanwhile."""

from __future__ import annotations

import copy
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
)

import hfadapt
from hfadapt import Classification, Engine, MultiLabel, MultiTaskModel, Regression, Span, Task, TokenClassification
from hfadapt.errors import CheckpointError, ConfigError, DataError, TaskError
from hfadapt.inference import folders
from hfadapt.inference.batches import LENGTHS, Shape, padded_length
from hfadapt.inference.predict import Predictor
from hfadapt.inference.proof import RowProof
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from hfadapt_kernels import native

TASKS = [
    Task("topic", Classification(2), label_names=("low", "high")),
    Task("kind", Classification(5, inner_size=8)),
    Task("score", Regression(0.0, 5.0)),
    Task("labels", MultiLabel(4)),
    Task("tags", TokenClassification(3), label_names=("O", "B", "I")),
    Task("same", Classification(2), pair="separate"),
    Task("span", Span()),
]
PAIRED = {"same": "w7 w8 w9", "span": "w2 w3 w4 w5"}
GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "data"


def text(words, start=0):
    return " ".join(f"w{(start + 7 * i) % 95}" for i in range(words))


# All lengths up to the 64 tokens that the model reads, those that fill a padded length among them.
REQUESTS = [
    (text(words, 3 * number), task.name, PAIRED.get(task.name))
    for number, words in enumerate((3, 14, 30, 61, 9))
    for task in TASKS
    if not (task.name in PAIRED and words > 40)
]


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("engine") / "base"
    torch.manual_seed(0)
    tiny_model("bert").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def saved(base_folder, folder, tasks, method, seed=1):
    model = MultiTaskModel.from_pretrained(str(base_folder), tasks=tasks, method=method)
    torch.manual_seed(seed)
    randomize(model.base)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(base_folder):
    return saved(base_folder, base_folder.parent / "many", TASKS, hfadapt.LoRA(r=4))


@pytest.fixture(scope="module")
def further(base_folder):
    """A task of another method in a folder of its own."""
    return saved(base_folder, base_folder.parent / "more", [Task("more", Classification(3))], "par_bn", 2)


@pytest.fixture(scope="module")
def model(folder):
    return MultiTaskModel.from_pretrained(folder)


@pytest.fixture
def engine(model):
    """An engine of its own for each test, which may change it."""
    return Engine(copy.deepcopy(model), tiny_tokenizer())


def ask(engine, requests):
    return engine.predict(*map(list, zip(*requests, strict=True)))


@pytest.fixture(scope="module")
def alone(model):
    """The answer of each request when nothing else is asked, from an engine that never runs two rows at once."""
    engine = Engine(copy.deepcopy(model), tiny_tokenizer())
    return [engine.predict([t], [name], [pair])[0] for t, name, pair in REQUESTS]


def test_every_kind_of_answer_in_one_call_has_the_bits_that_it_has_alone(engine, alone):
    found = ask(engine, REQUESTS)
    assert found == alone
    assert [one.task for one in found] == [name for _, name, _ in REQUESTS]
    kinds = {one.task: one for one in found}
    assert set(kinds["topic"].scores) == {"low", "high"} and kinds["topic"].score == max(kinds["topic"].scores.values())
    assert isinstance(kinds["score"].label, float) and kinds["score"].scores is None
    assert len(kinds["labels"].scores) == 4
    assert kinds["tags"].label[0][1] in ("O", "B", "I")
    if kinds["span"].span is not None:
        assert PAIRED["span"][slice(*kinds["span"].span)] == kinds["span"].label


@pytest.mark.parametrize("seed", range(2))
def test_order_and_neighbours_change_no_bit(engine, alone, seed):
    order = torch.randperm(len(REQUESTS), generator=torch.Generator().manual_seed(seed)).tolist()
    order += order[: 5 * seed]
    engine.token_budget = (4096, 100)[seed]
    assert ask(engine, [REQUESTS[i] for i in order]) == [alone[i] for i in order]


@pytest.mark.skipif(not native.available(), reason="without C++ ops rows go alone where torch's sums hang on others")
def test_rows_of_different_tasks_share_a_forward(engine):
    calls = []
    engine.model.base.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs["input_ids"].shape[0]),
                                                with_kwargs=True)  # fmt: skip
    requests = [(text(5, i), TASKS[i % 2].name, None) for i in range(8)]
    ask(engine, requests)  # with the proof
    calls.clear()
    ask(engine, requests)
    assert calls == [8]
    assert all(one["used"] for one in engine.shapes())


def test_a_shape_that_changes_bits_is_not_used():
    """A run whose sums hang on the number of rows is found out, and rows go in batches that keep their bits."""
    sizes = []

    def run(rows):
        sizes.append(len(rows))
        return [(np.float32([row["x"] + (1e-3 if len(rows) > 3 else 0)]), np.float32([])) for row in rows]

    proof = RowProof(run, lambda row: 0)
    shape, other = Shape((16,), (False,)), Shape((32,), (False,))
    rows = [{"x": float(i)} for i in range(6)]
    assert not proof.holds(shape, rows) and proof.most(shape) == 4
    assert not proof.holds(shape, rows[:4]) and proof.most(shape) == 3
    assert proof.holds(shape, rows[:3]) and proof.most(other) > 100
    sizes.clear()
    assert proof.holds(shape, rows[:3]) and not sizes, "a shape is shown once"
    assert [one["used"] for one in proof.shown()] == [False, False, True]


def test_rows_of_refused_shapes_go_in_smaller_batches(engine, alone, monkeypatch):
    monkeypatch.setattr(RowProof, "_shown", lambda self, samples, size: size <= 2)
    assert ask(engine, REQUESTS) == alone


def test_bits_are_those_alone_on_several_threads_too():
    """How torch cuts a tensor among threads hangs on how many rows it has; here on 2 rows of 16 tokens and more."""
    torch.manual_seed(0)
    wide = BertConfig(
        vocab_size=100, hidden_size=1024, num_hidden_layers=1, num_attention_heads=4, intermediate_size=1024
    )
    model = MultiTaskModel.from_base(BertModel(wide).eval(), [Task(name, Classification(3)) for name in "ab"], "lora")
    randomize(model.base)
    engine, before = Engine(model, tiny_tokenizer()), torch.get_num_threads()
    requests = [(text(9, i), "ab"[i % 2], None) for i in range(8)]
    ask(engine, requests[:4])
    try:
        torch.set_num_threads(before + 1)
        alone = [ask(engine, [request])[0] for request in requests]
        for order in (requests, requests[::-1], requests[:3]):
            assert ask(engine, order) == [alone[requests.index(one)] for one in order]
    finally:
        torch.set_num_threads(before)
    # What was shown on fewer threads is shown anew.
    assert {(one["threads"], one["rows"]) for one in engine.shapes()} >= {(before, 4), (before + 1, 8)}


def test_rounding_proves_nothing(folder):
    engine = Engine.from_pretrained(folder, isolation="rounding")
    assert [one.task for one in ask(engine, REQUESTS[:7])] == [task.name for task in TASKS]
    assert engine.shapes() == []


def test_all_tasks_on_one_text(engine, alone):
    names = [task.name for task in TASKS if task.name not in PAIRED]
    found = engine.predict_all(REQUESTS[0][0], names)
    assert found == [one for one in alone[: len(TASKS)] if one.task in names]


def test_a_predictor_and_an_engine_answer_alike(engine, folder):
    predictor = Predictor.from_folder(folder)
    for one, other in zip(ask(engine, REQUESTS[:7]), ask(predictor, REQUESTS[:7]), strict=True):
        assert one.task == other.task and type(one.label) is type(other.label)
        assert one.score == pytest.approx(other.score, abs=1e-4)


def test_tasks_come_and_go_and_the_others_keep_their_bits(engine, alone, further):
    topic, number = REQUESTS[0], 0
    assert engine.add(further) == ["more"]
    assert engine.add(further, called="again") == ["again"]
    one, other = engine.predict(["w1 w2"] * 2, ["more", "again"])
    assert (one.label, one.scores) == (other.label, other.scores)
    assert ask(engine, [topic]) == [alone[number]]
    engine.remove("kind")
    engine.remove("more")
    assert "kind" not in [task.name for task in engine.tasks]
    with pytest.raises(DataError, match="no task 'kind'"):
        engine.predict("w1", "kind")
    left = [(request, want) for request, want in zip(REQUESTS, alone, strict=True) if request[1] != "kind"]
    assert ask(engine, [request for request, _ in left]) == [want for _, want in left]
    assert engine.predict("w1 w2", "again")[0].scores == one.scores


def test_a_task_is_replaced_whole_or_not_at_all(engine, base_folder, tmp_path, alone):
    new = saved(base_folder, tmp_path / "new", TASKS[:2], hfadapt.LoRA(r=4), seed=9)
    for _ in range(2):
        engine.replace("topic", new)
        want = Engine.from_pretrained(new).predict("w1 w2 w3", "topic")
        assert engine.predict("w1 w2 w3", "topic") == want
        assert ask(engine, REQUESTS[1:7]) == alone[1:7]
    (new / "model.safetensors").write_bytes(b"no weights")
    with pytest.raises(CheckpointError):
        engine.replace("topic", new)
    assert engine.predict("w1 w2 w3", "topic") == want
    with pytest.raises(DataError, match="no task 'topics'[\\s\\S]*topic"):
        engine.replace("topics", new)


def test_tasks_of_several_folders_and_libraries(further, folder):
    several = Engine.from_pretrained([further, folder])
    assert [task.name for task in several.tasks] == ["more", *(task.name for task in TASKS)]
    named = Engine.from_pretrained({"first": further, "second": further})
    one, other = named.predict(["w1 w2"] * 2, ["first", "second"])
    assert (one.task, other.task, one.scores) == ("first", "second", other.scores)
    with pytest.raises(TaskError, match="more"):
        Engine.from_pretrained([further, further])


def test_folders_of_other_libraries(tmp_path):
    base = BertForSequenceClassification.from_pretrained(GOLDEN / "adapterhub/saved/base")
    mail = GOLDEN / "peft/saved/lora_seq_cls"
    tokenizer = tiny_tokenizer()
    news = GOLDEN / "adapterhub/saved/head_static/with_adapter"
    engine = Engine.from_pretrained({"mail": mail, "news": news}, base=base, tokenizer=tokenizer)
    found = engine.predict(["w1 w2 w3"] * 2, ["mail", "news"])
    assert [one.task for one in found] == ["mail", "news"] and [len(one.scores) for one in found] == [2, 3]
    assert engine.predict("w1 w2 w3", "news") == found[1:]
    hfadapt.attach(own := BertForSequenceClassification.from_pretrained(GOLDEN / "adapterhub/saved/base"), "lora")
    hfadapt.save(own, tmp_path / "own")
    assert engine.add(tmp_path / "own", called="own") == ["own"]
    assert engine.predict(["w1 w2 w3"] * 3, ["own", "mail", "news"])[1:] == found


@pytest.mark.parametrize(("kind", "side"), [("gpt2", "left"), ("t5", "right")])
def test_text_is_written_by_each_prompts_adapter(kind, side):
    torch.manual_seed(0)
    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    base = auto.from_config(tiny_model(kind).config).eval()
    tasks = [Task(name, hfadapt.OwnHead()) for name in ("a", "b")]
    model = MultiTaskModel.from_base(base, tasks, "lora")
    randomize(model.base)
    engine = Engine(model, tiny_tokenizer(side), max_new_tokens=6)
    requests = [(text(words, words), name, None) for words in (2, 14, 9) for name in "ab"]
    found = ask(engine, requests)
    assert found == [ask(engine, [one])[0] for one in requests]
    assert ask(engine, requests[::-1]) == found[::-1]
    assert len({one.label for one in found}) > 1 and all(one.scores is None for one in found)
    ids = engine.tokenizer(requests[0][0], return_tensors="pt")["input_ids"]
    if kind == "gpt2" and ids[0, -1] == engine.tokenizer.eos_token_id:
        ids = ids[:, :-1]
    with torch.no_grad():
        stock = base.generate(ids, task_ids="a", max_new_tokens=6, do_sample=False, pad_token_id=0)
    stock = stock[0, 1:] if kind == "t5" else stock[0, ids.shape[1] :]
    assert found[0].label == engine.tokenizer.decode(stock, skip_special_tokens=True)


def test_threads_share_an_engine_while_tasks_come_and_go(engine, alone, further):
    wrong, done = [], threading.Event()

    def client(start):
        for turn in range(2):
            picked = [(start + 5 * turn + i) % len(REQUESTS) for i in range(6)]
            try:
                if ask(engine, [REQUESTS[i] for i in picked]) != [alone[i] for i in picked]:
                    wrong.append(picked)
            except Exception as error:  # a thread's own would end it alone
                wrong.append(error)

    def changes():
        while not done.is_set():
            engine.add(further, called="guest")
            engine.replace("guest", further)
            engine.remove("guest")

    clients = [threading.Thread(target=client, args=(7 * i,)) for i in range(3)]
    changing = threading.Thread(target=changes)
    for thread in (*clients, changing):
        thread.start()
    for thread in clients:
        thread.join(60)
    done.set()
    changing.join(60)
    assert not wrong and not any(thread.is_alive() for thread in (*clients, changing))
    assert [task.name for task in engine.tasks] == [task.name for task in TASKS]


@pytest.mark.parametrize(
    ("texts", "tasks", "pairs", "message"),
    [
        (["w1"], ["topc"], None, "no task 'topc'[\\s\\S]*topic"),
        (["w1"], [3], None, "no task 3"),
        ([3], ["topic"], None, "text 0: not a text; got: 3"),
        ([b"w1"], ["topic"], None, "not a text"),
        (["w1", None], ["topic"] * 2, None, "text 1: not a text"),
        (["w1 \ud800"], ["topic"], None, "half a character"),
        (["w1 " * 3_400_000], ["topic"], None, "10,200,000 characters"),
        (["w1"], ["same"], None, "second text"),
        (["w1"], ["same"], [b"w2"], "not a text"),
        (["w1"], ["topic", "kind"], None, "one task"),
    ],
)
def test_bad_input_is_refused_by_name_and_the_engine_goes_on(engine, alone, texts, tasks, pairs, message):
    with pytest.raises(DataError, match=message):
        engine.predict(texts, tasks, pairs)
    assert ask(engine, REQUESTS[:1]) == alone[:1]


def test_bad_folders_are_refused_by_name_and_the_engine_goes_on(engine, alone, further, tmp_path, base_folder):
    from safetensors.torch import load_file, save_file

    other = MultiTaskModel.from_base(tiny_model("roberta"), [Task("x", Classification(2))], "lora")
    other.save_pretrained(tmp_path / "other")
    nan = shutil.copytree(further, tmp_path / "nan")
    tensors = load_file(nan / "model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, nan / "model.safetensors", {"format": "pt", "hfadapt": "1"})
    for bad in (tmp_path / "other", nan, tmp_path / "nowhere", base_folder):
        with pytest.raises(CheckpointError):
            engine.add(bad)
    with pytest.raises(TaskError, match="topic"):
        engine.add(further, called="topic")
    assert [task.name for task in engine.tasks] == [task.name for task in TASKS]
    assert ask(engine, REQUESTS[:7]) == alone[:7]
    with pytest.raises(CheckpointError, match="no such folder"):
        Engine.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="no folder"):
        Engine.from_pretrained([])


def test_a_folder_that_changes_is_told_and_what_was_read_is_served(base_folder, tmp_path, further):
    mine = shutil.copytree(further, tmp_path / "mine")
    engine = Engine.from_pretrained(mine)
    before = engine.predict("w1 w2", "more")
    assert engine.changed() == ()
    shutil.rmtree(mine)
    saved(base_folder, mine, [Task("more", Classification(3))], "par_bn", seed=5)
    assert engine.changed() == ("more",)
    assert engine.predict("w1 w2", "more") == before
    engine.replace("more", mine)
    assert engine.changed() == () and engine.predict("w1 w2", "more") != before


def test_a_folder_that_is_written_while_it_is_read_is_refused(engine, alone, tmp_path, further, monkeypatch):
    mine, stock = shutil.copytree(further, tmp_path / "mine"), MultiTaskModel.add_task

    def read_and_written(self, *args, **options):
        try:
            return stock(self, *args, **options)
        finally:
            (mine / "model.safetensors").write_bytes(b"half of a file")

    monkeypatch.setattr(MultiTaskModel, "add_task", read_and_written)
    with pytest.raises(CheckpointError, match="mine: the folder changed while it was read"):
        engine.add(mine)
    assert [task.name for task in engine.tasks] == [task.name for task in TASKS]
    assert ask(engine, REQUESTS[:7]) == alone[:7]


def test_folders_that_nobody_touched_are_not_read_again(further, tmp_path, monkeypatch):
    mine, read = shutil.copytree(further, tmp_path / "mine"), []
    engine, stock = Engine.from_pretrained(mine), folders.digest_of
    monkeypatch.setattr(folders, "digest_of", lambda folder: [read.append(folder), stock(folder)][1])
    assert engine.changed() == () and not read
    (mine / "hfadapt_config.json").touch()
    assert engine.changed() == () and read == [mine]


def test_a_check_says_what_predict_would_say_and_runs_nothing(engine, monkeypatch):
    monkeypatch.setattr(engine.model, "forward", None)
    engine.check(["w1", "w2"], ["topic", "score"])
    for texts, tasks, pairs in ((["w1"], ["topc"], None), ([3], ["topic"], None), (["w1"], ["same"], [None])):
        with pytest.raises(DataError):
            engine.check(texts, tasks, pairs)


def test_a_model_whose_weights_are_nan_is_refused(folder):
    model = MultiTaskModel.from_pretrained(folder)
    next(model.heads.parameters()).data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite[\\s\\S]*heads"):
        Engine(model, tiny_tokenizer())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"isolation": "bit"}, "bits"),
        ({"token_budget": 0}, "token_budget"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"dtype": "int4"}, "dtype"),
    ],
)
def test_bad_options(folder, options, message):
    with pytest.raises(ConfigError, match=message):
        Engine.from_pretrained(folder, **options)


def test_a_head_that_nobody_reads_is_refused(base_folder):
    model = MultiTaskModel.from_base(
        AutoModelForMaskedLM.from_pretrained(base_folder),
        [Task("x", hfadapt.OwnHead())],
        "lora",
    )
    with pytest.raises(TaskError, match="cannot read its answer"):
        Engine(model, tiny_tokenizer())


def test_padded_lengths():
    assert [padded_length(n, 512) for n in (1, 16, 17, 33, 65, 511)] == [16, 16, 32, 48, 96, 512]
    assert padded_length(50, 64) == 64 and padded_length(60, 62) == 62
    assert padded_length(513, 10**9) == 2 * LENGTHS[-1]
