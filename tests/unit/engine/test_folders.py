"""Tasks come, go and are replaced while others are served, from folders of any library; what is damaged is refused."""

from __future__ import annotations

import copy
import shutil
import threading

import pytest
from transformers import (
    BertForSequenceClassification,
)

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Task
from hfadapt.errors import CheckpointError, DataError, TaskError
from hfadapt.inference import folders
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import GOLDEN, REQUESTS, TASKS, ask, saved


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


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int8_dynamic"])
def test_tasks_come_and_go_on_a_base_of_other_numbers(model, further, dtype):
    engine = Engine(copy.deepcopy(model), tiny_tokenizer(), dtype=dtype)
    before = ask(engine, REQUESTS[:7])
    engine.add(further)
    engine.replace("more", further)
    assert engine.predict("w1 w2", "more")[0].scores and ask(engine, REQUESTS[:7]) == before
    engine.remove("more")
    assert ask(engine, REQUESTS[:7]) == before and engine.dtype == dtype


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


def test_bad_folders_are_refused_by_name_and_the_engine_goes_on(engine, alone, further, tmp_path, base_folder):
    from safetensors.torch import load_file, save_file

    other = MultiTaskModel.from_base(tiny_model("roberta"), [Task("x", Classification(2))], "lora")
    other.save_pretrained(tmp_path / "other")
    nan = shutil.copytree(further, tmp_path / "nan")
    tensors = load_file(nan / "model.safetensors")
    next(iter(tensors.values())).fill_(float("nan"))
    save_file(tensors, nan / "model.safetensors", {"format": "pt", "hfadapt": "1"})
    with pytest.raises(CheckpointError, match="not the file that was saved"):
        engine.add(nan)
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


def test_a_model_whose_weights_are_nan_is_refused(folder):
    model = MultiTaskModel.from_pretrained(folder)
    next(model.heads.parameters()).data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite[\\s\\S]*heads"):
        Engine(model, tiny_tokenizer())
