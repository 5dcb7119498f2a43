"""Tokenised tables, truncation, the cache, and the collator."""

from __future__ import annotations

import logging
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from hfadapt import Classification, Regression, Span, Task, TaskMixture, TokenClassification
from hfadapt.data import MultiTaskCollator, load_splits, tokenize
from hfadapt.data.columns import read_columns
from hfadapt.data.preview import html_table
from hfadapt.errors import DataError
from hfadapt.testing.toy import tiny_tokenizer, toy_rows, toy_tasks


def table(task, tokenizer=None, **options):
    columns = read_columns(task, "train", load_splits(task)["train"])
    return tokenize(task, columns, tokenizer or tiny_tokenizer(), **options)


def test_long_texts_are_cut_with_one_warning_that_counts_them(caplog):
    rows = [{"text": "w1 " * 10_000, "label": 0}, {"text": "w1 " * 70, "label": 0}, {"text": "w1", "label": 1}]
    with caplog.at_level(logging.WARNING, "hfadapt"):
        result = table(Task("t", data=rows, max_length=32))
    assert result.lengths.tolist() == [32, 32, 3]
    messages = [r.getMessage() for r in caplog.records if r.name.startswith("hfadapt")]
    assert len(messages) == 1
    assert "2 of 3 rows were cut to 32 tokens" in messages[0] and "10002" in messages[0]


def test_a_text_that_just_fits_is_not_counted_as_cut():
    assert table(Task("t", data=[{"text": "w1 " * 30, "label": 0}], max_length=32)).truncated == 0


def test_pairs_are_joint_or_separate():
    rows = toy_rows("pair", 4)
    joint, separate = (table(Task("t", data=rows, pair=form)) for form in ("joint", "separate"))
    assert set(joint.fields) == {"input_ids", "token_type_ids", "labels"}
    assert set(separate.fields) == {"input_ids", "pair_input_ids", "labels"}
    assert joint.fields["token_type_ids"][0].max() == 1
    assert separate.fields["pair_input_ids"][0][0] == 2


def test_cache_gives_the_same_arrays_and_notices_changes(tmp_path):
    task = Task("t", data=toy_rows("pair", 8), pair="separate")
    first = table(task, cache_dir=tmp_path)
    again = table(task, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    for name, ragged in first.fields.items():
        np.testing.assert_array_equal(again.fields[name].flat, ragged.flat)
        np.testing.assert_array_equal(again.fields[name].offsets, ragged.offsets)
    table(task, cache_dir=tmp_path, max_length=16)
    table(Task("t", data=toy_rows("pair", 8)), cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


def test_a_damaged_cache_file_is_made_again(tmp_path, caplog):
    task = Task("t", data=toy_rows("class", 4))
    first = table(task, cache_dir=tmp_path)
    next(tmp_path.iterdir()).write_bytes(b"short")
    again = table(task, cache_dir=tmp_path)
    np.testing.assert_array_equal(first.fields["input_ids"].flat, again.fields["input_ids"].flat)
    assert "damaged" in caplog.text


def test_words_label_their_first_piece_only():
    task = Task("t", TokenClassification(3), data=[{"text": ["w1", "w2", "w3"], "label": [0, 2, -100]}])
    assert table(task).fields["labels"][0].tolist() == [-100, 0, 2, -100, -100]


def test_fewer_labels_than_words_are_refused():
    with pytest.raises(DataError, match="fewer labels than words"):
        table(Task("t", TokenClassification(3), data=[{"text": ["w1", "w2"], "label": [0]}]))


def test_spans_become_token_positions_and_lost_answers_the_first_token():
    rows = [
        {"text": "w1", "text_pair": "w4 w5 w6", "label": {"text": ["w5 w6"], "answer_start": [3]}},
        {"text": "w1", "text_pair": "w4 " * 40 + "w9", "label": {"text": ["w9"], "answer_start": [120]}},
        {"text": "w1", "text_pair": "w4", "label": {"text": [], "answer_start": []}},
    ]
    result = table(Task("t", Span(version_2_with_negative=True), data=rows, max_length=16))
    assert [result.fields["labels"][i][:2].tolist() for i in range(3)] == [[4, 5], [0, 0], [0, 0]]


def mixture(**options):
    return TaskMixture(toy_tasks(), tiny_tokenizer(), **options)


def test_batch_of_several_tasks_keeps_regression_labels_exact():
    mix = mixture()
    rows = [mix.dataset("train", [name])[0] for name in ("topic", "score", "same")]
    batch = mix.collator(rows)
    assert batch["task_ids"].tolist() == [0, 1, 2]
    assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (3, 1)
    assert batch["labels"][1, 0].item() == pytest.approx(mix.texts("score", "train").labels[0][0])
    # rows without a second text still have one token to look at
    assert batch["pair_attention_mask"].sum(dim=1).min() == 1


def test_labels_of_different_widths_are_padded():
    tasks = [
        Task("a", data=toy_rows("class", 2)),
        Task("b", TokenClassification(3), data=[{"text": ["w1", "w2"], "label": [0, 2]}]),
    ]
    mix = TaskMixture(tasks, tiny_tokenizer())
    batch = mix.collator([mix.dataset("train", ["a"])[0], mix.dataset("train", ["b"])[0]])
    assert batch["labels"].shape == (2, 4)
    assert batch["labels"][0, 1:].tolist() == [-100] * 3


@pytest.mark.parametrize(("head", "dtype"), [(Classification(2), torch.long), (Regression(), torch.float32)])
def test_a_single_task_has_labels_as_stock_models_expect_them(head, dtype):
    mix = TaskMixture([Task("t", head, data=toy_rows("class", 3))], tiny_tokenizer())
    batch = mix.collator([mix.train[i] for i in range(2)])
    assert batch["labels"].shape == (2,) and batch["labels"].dtype == dtype


def test_left_padding_moves_token_labels_and_spans():
    tokenizer = tiny_tokenizer(padding_side="left")
    collator = MultiTaskCollator(["token", "position"], tokenizer)
    long = np.arange(4, 10, dtype=np.int32)
    short = np.arange(4, 7, dtype=np.int32)
    batch = collator(
        [
            {"input_ids": long, "labels": np.zeros(6, np.float32), "task_ids": 0},
            {"input_ids": short, "labels": np.array([-100, 2, -100], np.float32), "task_ids": 0},
            {"input_ids": short, "labels": np.array([1, 2], np.float32), "task_ids": 1},
        ]
    )
    assert batch["attention_mask"][1].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["labels"][1].tolist() == [-100, -100, -100, -100, 2, -100]
    assert batch["labels"][2, :2].tolist() == [4, 5]


def test_width_is_rounded_up_when_asked():
    mix = mixture(pad_to_multiple_of=8)
    assert mix.collator([mix.train[0]])["input_ids"].shape[1] % 8 == 0


def test_a_mixture_without_tokenizer_says_so():
    mix = TaskMixture(toy_tasks())
    with pytest.raises(DataError, match="no tokenizer yet"):
        mix.train[0]
    with pytest.raises(DataError, match="no tokenizer yet"):
        mix.collator([])


def test_eval_set_holds_each_validation_row_once_longest_first():
    mix = mixture()
    rows = [mix.eval[i] for i in range(len(mix.eval))]
    assert [row["task_ids"] for row in rows] == [0] * 8 + [1] * 8 + [2] * 8
    lengths = [len(row["input_ids"]) for row in rows[:8]]
    assert lengths == sorted(lengths, reverse=True)


def test_named_splits_keep_the_order_of_the_data_and_typos_are_caught():
    mix = mixture()
    data = mix.dataset("validation", ["score"])
    labels = [float(data[i]["labels"][0]) for i in range(len(data))]
    assert labels == pytest.approx([float(x[0]) for x in mix.texts("score", "validation").labels])
    with pytest.raises(DataError, match="Did you mean 'validation'"):
        mix.dataset("validaton")
    with pytest.raises(DataError, match="Did you mean 'score'"):
        mix.dataset("train", ["scor"])


def test_training_set_follows_its_epoch_and_survives_pickle():
    import pickle

    mix = mixture()
    first = [mix.train[i]["task_ids"] for i in range(len(mix.train))]
    mix.train.set_epoch(1)
    second = pickle.loads(pickle.dumps(mix.train))
    assert second.epoch == 1
    assert [second[i]["task_ids"] for i in range(len(second))] != first


def test_workers_that_outlive_an_epoch_see_the_new_one():
    mix = mixture(batch_size=8)
    loader = torch.utils.data.DataLoader(
        mix.train, batch_size=8, collate_fn=mix.collator, num_workers=1, persistent_workers=True
    )
    for epoch in range(2):
        mix.train.set_epoch(epoch)
        got = torch.cat([batch["task_ids"] for batch in loader])
        assert got.tolist() == mix.schedule.index(epoch)[0].tolist()


def test_preview_shows_the_plan_as_text_and_data():
    mix = mixture(epochs=5)
    preview = mix.preview()
    data = preview.to_dict()
    assert np.allclose(np.sum(data["probabilities"], axis=1), 1)
    assert np.sum(data["rows"]) == 5 * mix.schedule.rows
    assert "topic" in str(preview) and "annealed" in str(preview).lower()


def test_notebooks_show_mixtures_and_previews_as_tables():
    mix = mixture(epochs=5)
    sizes = {task.name: mix.rows_of(i, "train") for i, task in enumerate(mix.tasks)}
    assert all(f"{name}: {size} rows" in repr(mix) for name, size in sizes.items())
    caption, header, *lines = str(mix.preview()).splitlines()
    for shown, first in ((mix._repr_html_(), "TaskMixture"), (mix.preview()._repr_html_(), caption)):
        page = ElementTree.fromstring(shown)
        assert page.find("caption").text.startswith(first)
        assert [row[0].text for row in page.find("tbody")] == list(sizes)
    cells = [[cell.text for cell in row] for row in page.iter("tr")]
    assert [" ".join(row).split() for row in cells] == [line.split() for line in (header, *lines)]


def test_a_tables_cells_are_text():
    assert "<b>" not in html_table("<b>", ["<b>"], [["<b>"]])
