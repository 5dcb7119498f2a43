"""Images and sound: the same tasks, mixtures, heads and Trainer as texts, with arrays from a processor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainingArguments

from hfadapt import Classification, MultiTaskModel, Regression, Span, Task, TaskMixture
from hfadapt.errors import DataError
from hfadapt.testing.tiny import tiny_config, tiny_model


def base_of(kind):
    """A tiny base and the shape of what it reads."""
    if kind == "vit":
        config = tiny_config("vit")
        return tiny_model("vit"), "pixel_values", (config.num_channels, config.image_size, config.image_size)
    model = tiny_model("whisper")
    shape = (model.config.num_mel_bins, 2 * model.config.max_source_positions)
    return (model.get_encoder() if kind == "whisper encoder" else model), "input_features", shape


def rows(shape, count, role, number=False, seed=0):
    stream = np.random.default_rng(seed)
    made = []
    for i in range(count):
        value = stream.normal(size=shape).astype(np.float32) + (i % 2)
        made.append({role: value.tolist(), "label": float(i % 2) if number else i % 2})
    return made


KINDS = ["vit", "whisper encoder", "whisper"]


@pytest.fixture(params=KINDS)
def parts(request):
    torch.manual_seed(0)
    base, role, shape = base_of(request.param)
    tasks = [
        Task("kind", Classification(2), data={"train": rows(shape, 8, role), "validation": rows(shape, 4, role)}),
        Task("size", Regression(), data=rows(shape, 8, role, number=True, seed=1)),
    ]
    return MultiTaskModel.from_base(base, tasks, "low_rank"), tasks, role


def test_a_plain_trainer_trains_and_evaluates_them(parts, tmp_path):
    model, tasks, _ = parts
    mix = TaskMixture(tasks, epoch_steps=4)
    args = TrainingArguments(str(tmp_path), per_device_train_batch_size=2, num_train_epochs=1, learning_rate=1e-2,
                             report_to=[], use_cpu=True, disable_tqdm=True, save_strategy="no")  # fmt: skip
    trainer = Trainer(model=model, args=args, train_dataset=mix.train, eval_dataset=mix.eval,
                      data_collator=mix.collator, compute_metrics=mix.metrics, callbacks=mix.callbacks)  # fmt: skip
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    trainer.train()
    assert "eval_kind_accuracy" in trainer.evaluate()
    moved = [name for name, p in model.named_parameters() if name in before and not torch.equal(p, before[name])]
    assert any("heads.kind" in name for name in moved) and any(".hfadapt." in name for name in moved)


def test_mixed_rows_equal_each_task_alone(parts):
    model, tasks, role = parts
    model.eval()
    mix = TaskMixture(tasks)
    items = [mix.dataset("train", [name])[0] for name in ("kind", "size", "kind")]
    batch = mix.collator(items)
    assert batch[role].dtype == torch.float32 and "input_ids" not in batch
    got = model(**batch).logits
    for row in range(3):
        alone = model(**{name: value[row : row + 1] for name, value in batch.items()}).logits
        torch.testing.assert_close(got[row : row + 1], alone)


def vit_task(values, head=None, **more):
    data = [{"pixel_values": value, "label": 0} for value in values]
    return Task("kind", head or Classification(2), data=data, **more)


def test_arrays_that_do_not_fit_are_refused():
    good = np.zeros((3, 4, 4)).tolist()
    with pytest.raises(DataError, match=r"row 1[\s\S]*shape \[3, 4, 5\][\s\S]*\[3, 4, 4\]"):
        TaskMixture([vit_task([good, np.zeros((3, 4, 5)).tolist()])]).dataset("train")[1]
    with pytest.raises(DataError, match="not finite"):
        TaskMixture([vit_task([good, np.full((3, 4, 4), np.nan).tolist()])]).dataset("train")[1]
    with pytest.raises(DataError, match="does not hold arrays of numbers"):
        TaskMixture([vit_task(["a.png"])])
    with pytest.raises(DataError, match="no tokens and no pairs"):
        TaskMixture([vit_task([good], Span())])
    with pytest.raises(DataError, match="no column 'pixels'"):
        TaskMixture([vit_task([good], columns={"pixel_values": "pixels"})])


def test_one_base_reads_one_kind_of_input():
    text = Task("topic", Classification(2), data=[{"text": "w1", "label": 0}])
    with pytest.raises(DataError, match=r"same kind of input[\s\S]*kind: pixel_values"):
        TaskMixture([text, vit_task([np.zeros((3, 4, 4)).tolist()])])
