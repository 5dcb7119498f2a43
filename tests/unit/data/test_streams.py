"""Training rows from an ``IterableDataset``: in their order, a block at a time, over passes, processes and resumes."""

from __future__ import annotations

import copy

import datasets
import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hfadapt import Classification, RoundRobin, Span, Task, TaskMixture
from hfadapt.data import streams
from hfadapt.errors import ConfigError, DataError
from hfadapt.testing.toy import tiny_tokenizer, toy_model

TOKENIZER = tiny_tokenizer()


def row(number):
    return {"text": f"w{number % 90} w{number // 90}", "label": number % 2}


class Counted(torch.utils.data.IterableDataset):
    """Rows of the user's own, which counts how many were made."""

    def __init__(self, count, made=row):
        self.count, self.made, self.read = count, made, 0

    def __iter__(self):
        for number in range(self.count):
            self.read += 1
            yield self.made(number)


def of_datasets(count, **options):
    def rows():
        yield from map(row, range(count))

    return datasets.IterableDataset.from_generator(rows, **options)


def mixture(source, *others, **options):
    tasks = [Task("web", Classification(2), {"train": source}), *others]
    given = {"strategy": RoundRobin(), "batch_size": 4, "epoch_steps": 4, "epochs": 2, **options}
    return TaskMixture(tasks, TOKENIZER, **given)


def ids(rows):
    return [one["input_ids"].tolist() for one in rows]


def wanted(numbers):
    return [TOKENIZER(row(number)["text"])["input_ids"] for number in numbers]


def error_of(call, kind):
    with pytest.raises(kind) as caught:
        call()
    found = getattr(caught.value, "found", ()) or (caught.value,)
    assert all(all((one.what, one.where, one.got, one.allowed, one.try_)) for one in found)
    return str(caught.value)


@pytest.mark.parametrize("kind", [Counted, of_datasets])
def test_rows_come_in_their_order_and_begin_again_at_the_end(kind):
    mix = mixture(kind(20))
    assert ids(mix.train[i] for i in range(16)) == wanted(range(16))
    mix.train.set_epoch(1)
    assert ids(mix.train[i] for i in range(16)) == wanted([16, 17, 18, 19, *range(12)])
    assert "a stream of rows" in repr(mix) and "stream" in str(mix.preview()) and mix.preview().to_dict()
    assert mix._repr_html_()


def test_a_stream_without_end_is_held_a_block_at_a_time(monkeypatch):
    source, tokenised = Counted(10**9), []
    whole = streams.tokenize
    monkeypatch.setattr(
        streams, "tokenize", lambda task, columns, *rest: tokenised.append(len(columns)) or whole(task, columns, *rest)
    )
    mix = mixture(source, epoch_steps=100)
    assert source.read == streams.BLOCK
    assert ids([mix.train[399]]) == wanted([399])  # as after a checkpoint
    assert source.read == 448 and tokenised == [64]
    list(map(mix.train.__getitem__, range(396, 400)))
    assert tokenised == [64]


def test_beside_a_task_whose_rows_are_all_there():
    rows = [{"text": f"w{i} " * (i + 1), "label": 0} for i in range(8)]
    for batch in ("one_task", "mixed"):
        mix = mixture(Counted(100), Task("small", Classification(2), rows), batch=batch, epoch_steps=16)
        tasks, places = mix.train.index()
        assert places[tasks == 0].tolist() == list(range(32))
        assert sorted(places[tasks == 1].tolist()) == sorted([*range(8)] * 4)
        found = [mix.train[i] for i in range(64)]
        assert ids(one for one in found if one["task_ids"] == 0) == wanted(range(32))
    mix = mixture(Counted(100), Task("small", Classification(2), rows), strategy="proportional", rows={"web": 24})
    assert mix.schedule.sizes == (24, 8) and mix.preview().probabilities[0].tolist() == [0.75, 0.25]
    assert mixture(Counted(100), epoch_steps=None, rows={"web": 24}).schedule.steps == 6


def test_processes_share_the_rows_of_one_stream():
    want = ids(mixture(Counted(50)).train[i] for i in range(16))
    first, second = mixture(Counted(50)), mixture(Counted(50))
    halves = [ids(mix.train[i] for i in range(16) if i // 2 % 2 == rank) for rank, mix in enumerate((first, second))]
    assert sorted(halves[0] + halves[1]) == sorted(want)


def test_shuffled_streams_shuffle_anew_each_pass_and_alike_each_time():
    def passes():
        mix = mixture(of_datasets(12).shuffle(seed=3, buffer_size=12), epoch_steps=6)
        return ids(mix.train[i] for i in range(24))

    first = passes()
    assert sorted(first[:12]) == sorted(first[12:]) == sorted(wanted(range(12))) and first[:12] != first[12:]
    assert passes() == first


def test_splits_to_evaluate_are_read_whole(monkeypatch):
    splits = datasets.IterableDatasetDict(
        {"train": of_datasets(30), "validation": of_datasets(5), "test": of_datasets(3)}
    )
    mix = TaskMixture(Task("web", Classification(2), splits), TOKENIZER, batch_size=4, epoch_steps=2)
    assert len(mix.eval) == 5 and ids(mix.dataset("test")) == wanted(range(3))
    assert mix.has_split("test") and mix.rows_of(0, "test") == 3 and mix.has_labels("web", "train")
    monkeypatch.setattr(streams, "MOST_HELD", 4)
    assert "evaluated is held in memory" in error_of(
        lambda: TaskMixture(Task("web", Classification(2), {**splits, "validation": Counted(5)}), epoch_steps=2),
        DataError,
    )


class Once(torch.utils.data.IterableDataset):
    def __init__(self, count):
        self.rows = map(row, range(count))

    def __iter__(self):
        return self.rows


def test_a_stream_that_can_be_read_once_is_read_once():
    mix = mixture(Once(200), epoch_steps=25)
    assert ids(mix.train[i] for i in range(100)) == wanted(range(100))
    assert "does not begin again where it began" in error_of(lambda: mix.train[0], DataError)
    mix = mixture(Once(70), epoch_steps=25)
    assert ids(mix.train[i] for i in range(70)) == wanted(range(70))
    assert "has ended and does not begin again" in error_of(lambda: mix.train[70], DataError)


def test_copies_read_for_themselves():
    mix = mixture(Counted(40))
    first = ids(mix.train[i] for i in range(4))
    assert ids(copy.deepcopy(mix).train[i] for i in range(4)) == first
    assert ids([mix.train[4]]) == wanted([4])


SMALL = Task("b", Classification(2), [row(0)])


def bad_label(number):
    return {"text": "w1", "label": number // 70 * 2}


def broken(number):
    if number == 70:
        raise OSError("the disk is gone")
    return row(number)


MISTAKES = {
    "sizes": (lambda: mixture(Counted(9), SMALL, strategy=None), ConfigError),
    "epoch": (lambda: mixture(Counted(9), epoch_steps=None), ConfigError),
    "no such name": (lambda: mixture(Counted(9), rows={"wed": 3}), ConfigError),
    "counted already": (lambda: mixture(Counted(9), SMALL, rows={"b": 3}), ConfigError),
    "no number": (lambda: mixture(Counted(9), rows={"web": "many"}), ConfigError),
    "no mapping": (lambda: mixture(Counted(9), rows=5), ConfigError),
    "nothing": (lambda: mixture(Counted(0)), DataError),
    "tuples": (lambda: mixture(Counted(9, lambda number: ("w1", 0))), DataError),
    "no column": (lambda: mixture(Counted(9, lambda number: {"txt": "w1", "label": 0})), DataError),
    "a bad label": (lambda: mixture(Counted(9, lambda number: {"text": "w1", "label": 2})), DataError),
    "a bad label far on": (lambda: mixture(Counted(99, bad_label), epoch_steps=25).train[80], DataError),
    "it fails far on": (lambda: mixture(Counted(99, broken), epoch_steps=25).train[80], DataError),
    "types change": (lambda: mixture(Counted(9, lambda n: {"text": "w1", "label": "a" if n else 0})), DataError),
    "a list of it": (lambda: mixture(Counted(9)).dataset("train"), DataError),
    "windows": (lambda: TaskMixture(Task("qa", Span(doc_stride=4), Counted(9)), epoch_steps=2), DataError),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    message = error_of(*MISTAKES[mistake])
    if "far on" in mistake:
        assert "64" in message or "row 70" in message


def trained(folder, steps, **options):
    """What a plain Trainer trains, and how its weights end."""
    seen = []
    small = Task("small", Classification(2), [row(i) for i in range(8)])
    tasks = [Task("web", Classification(2), {"train": of_datasets(50)}), small]
    mix = TaskMixture(tasks, TOKENIZER, strategy=RoundRobin(), epoch_steps=4)
    model = toy_model(tasks, method="lora")
    arguments = TrainingArguments(
        str(folder), per_device_train_batch_size=2, max_steps=steps, save_steps=3, report_to=[], use_cpu=True,
        disable_tqdm=True, **{key: value for key, value in options.items() if key != "resume"},
    )  # fmt: skip

    def collate(rows):
        seen.extend(ids(rows))
        return mix.collator(rows)

    trainer = Trainer(model, arguments, train_dataset=mix.train, data_collator=collate, callbacks=mix.callbacks)
    trainer.train(resume_from_checkpoint=options.get("resume"))
    return seen, {key: tensor.clone() for key, tensor in model.state_dict().items()}


def test_a_run_that_was_cut_off_goes_on_with_the_rows_that_it_would_have_had(tmp_path):
    seen, whole = trained(tmp_path, 6)
    again, resumed = trained(tmp_path, 6, resume=str(tmp_path / "checkpoint-3"))
    assert again == seen[-len(again) :] and len(again) < len(seen)
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_worker_processes_are_refused(tmp_path):
    message = error_of(lambda: trained(tmp_path, 2, dataloader_num_workers=2), ConfigError)
    assert "dataloader_num_workers=2" in message


def test_images_stream_too():
    source = Counted(9, lambda n: {"pixel_values": np.full((3, 4, 4), n, np.float32), "label": n % 2})
    mix = TaskMixture(Task("see", Classification(2), source), batch_size=3, epoch_steps=3)
    assert [float(mix.train[i]["pixel_values"].mean()) for i in range(9)] == list(range(9))
