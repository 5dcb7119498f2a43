"""``MultiTaskModel.generate``: prompts of several tasks in one batch, each what it writes alone."""

from __future__ import annotations

import functools

import pytest
import torch
from transformers import GenerationConfig, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.generation.streamers import BaseStreamer

import hfadapt
from hfadapt import MultiTaskModel, OwnHead, Task, TaskMixture
from hfadapt.errors import RoutingError, TaskError
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_inputs, tiny_model
from hfadapt.testing.toy import tiny_tokenizer

TASKS = ("chat", "code", "sums")
ROWS = ["code", "chat", "code"]
WRITTEN = {"max_new_tokens": 4, "min_new_tokens": 4, "do_sample": False}
DECODERS = ("gpt2", "llama")


@functools.cache
def kept_writer(model_type):
    """`writer` for tests that leave the model as it is."""
    return writer(model_type)


def writer(model_type, method="mam", names=TASKS):
    """A float64 model whose adapters write different words, and prompts padded as its kind wants them."""
    decoder = model_type in DECODERS
    head = "causal-lm" if decoder else "seq2seq-lm"
    base = tiny_model(model_type, head).double()
    base.generation_config.pad_token_id = 0
    labels = "continuation" if decoder else "text"
    model = MultiTaskModel.from_base(base, [Task(name, OwnHead(labels=labels)) for name in names], method).eval()
    if method is not None:
        randomize(model.base)
        with torch.no_grad():
            for name in names:
                for parameter in hfadapt.parameters_of(model.base, name).values():
                    parameter.mul_(5.0)
    inputs = tiny_inputs(model_type, head, padding="left" if decoder else "right")
    inputs.pop("decoder_input_ids", None)
    return model, inputs


def alone(model, inputs, tasks=ROWS, **options):
    """What each prompt gives in a batch of its own, without padding."""
    decodes, found = not model.base.config.is_encoder_decoder, []
    for row, task in enumerate(tasks):
        real = inputs["attention_mask"][row].bool()
        made = model.generate(inputs["input_ids"][row : row + 1, real], task_ids=task, **{**WRITTEN, **options})
        found += [one[int(real.sum()) * decodes :] for one in made]
    return torch.stack(found)


def together(model, inputs, tasks=ROWS, **options):
    made = model.generate(**inputs, task_ids=tasks, **{**WRITTEN, **options})
    return made if model.base.config.is_encoder_decoder else made[:, inputs["input_ids"].shape[1] :]


BEAMS = {"num_beams": 2, "num_return_sequences": 2}


@pytest.mark.parametrize(
    ("model_type", "options"), [("gpt2", {}), ("llama", {}), ("llama", BEAMS), ("t5", BEAMS), ("bart", {})], ids=str
)
def test_prompts_of_several_tasks_write_what_each_writes_alone(model_type, options):
    model, inputs = kept_writer(model_type)
    want = alone(model, inputs, **options)
    assert torch.equal(together(model, inputs, **options), want)
    assert torch.equal(together(model, inputs, use_cache=False, **options), want)
    others = together(model, inputs, ["chat", "sums", "chat"], **options)
    assert not torch.equal(others, want)


def test_tasks_are_named_as_in_forward():
    model, inputs = writer("gpt2", "lora")
    want = together(model, inputs)
    for form in ([1, 0, 1], torch.tensor([1, 0, 1]), ("code", "chat", 1)):
        assert torch.equal(together(model, inputs, form), want)
    assert torch.equal(together(model, inputs, "code"), together(model, inputs, ["code"] * 3))
    with hfadapt.active(model, "code"):
        assert torch.equal(together(model, inputs, None), together(model, inputs, "code"))
    model.remove_task("chat")  # the ids of the others stay
    assert torch.equal(together(model, inputs, [1, 2, 1])[[0, 2]], want[[0, 2]])
    with pytest.raises(RoutingError, match="removed"):
        together(model, inputs, [1, 0, 1])


def test_a_tasks_composition_writes():
    model, inputs = writer("llama", "lora")
    plain = together(model, inputs)
    model.use("code", hfadapt.Average("code", "sums"))
    routed = together(model, inputs)
    assert torch.equal(routed[1], plain[1]) and not torch.equal(routed[[0, 2]], plain[[0, 2]])
    assert torch.equal(routed, alone(model, inputs))


class Kept(BaseStreamer):
    def __init__(self):
        self.tokens = []

    def put(self, value):
        self.tokens += value.flatten().tolist()

    def end(self):
        self.tokens.append("end")


def test_options_of_the_bases_own_generate_are_handed_on():
    model, inputs = kept_writer("gpt2")
    want = together(model, inputs)
    config = GenerationConfig(**WRITTEN, pad_token_id=0)
    made = model.generate(inputs["input_ids"], config, task_ids=ROWS, attention_mask=inputs["attention_mask"])
    assert torch.equal(made[:, inputs["input_ids"].shape[1] :], want)
    whole = model.generate(**inputs, task_ids=ROWS, **WRITTEN, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(whole.sequences, made) and len(whole.logits) == 4
    one = {key: value[:1] for key, value in inputs.items()}
    streamer = Kept()
    made = model.generate(**one, task_ids=["code"], streamer=streamer, **WRITTEN)
    assert streamer.tokens == [*made[0].tolist(), "end"]
    embeds = model.get_input_embeddings()(inputs["input_ids"])
    made = model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], task_ids=ROWS, **WRITTEN)
    assert torch.equal(made, want)
    torch.manual_seed(0)
    sampled = together(model, inputs, do_sample=True, num_return_sequences=2)
    torch.manual_seed(0)
    assert torch.equal(together(model, inputs, do_sample=True, num_return_sequences=2, use_cache=False), sampled)


def test_segments_are_for_bases_that_know_them():
    model, inputs = kept_writer("llama")
    segments = torch.ones_like(inputs["input_ids"])
    assert torch.equal(together(model, {**inputs, "token_type_ids": segments}), together(model, inputs))


def test_without_a_prompt_or_a_mask():
    model, inputs = kept_writer("gpt2")
    ids = inputs["input_ids"].clamp_min(5)
    rows = [model.generate(ids[i : i + 1], task_ids=[t], **WRITTEN)[0] for i, t in enumerate(ROWS)]
    assert torch.equal(model.generate(ids, task_ids=ROWS, **WRITTEN), torch.stack(rows))
    made = {task: model.generate(task_ids=task, bos_token_id=7, **WRITTEN) for task in TASKS}
    assert made["chat"].shape[0] == 1 and not torch.equal(made["chat"], made["code"])
    assert torch.equal(model.generate(task_ids=["chat"], bos_token_id=7, **WRITTEN), made["chat"])


def test_a_base_without_adapters_and_one_task():
    model, inputs = writer("gpt2", None, ("only",))
    made = model.base.generate(**inputs, **WRITTEN)[:, inputs["input_ids"].shape[1] :]
    assert torch.equal(together(model, inputs, None), made)
    with pytest.raises(RoutingError, match="unknown task 'other'"):
        together(model, inputs, "other")


def test_speech_is_written_down_by_the_task_of_its_row():
    base = tiny_model("whisper", "speech-seq2seq").double()
    base.generation_config.pad_token_id = 0
    model = MultiTaskModel.from_base(base, [Task(name, OwnHead()) for name in TASKS], "lora").eval()
    randomize(model.base)
    sound = tiny_inputs("whisper", "speech-seq2seq")["input_features"].double()
    want = torch.cat([model.generate(sound[i : i + 1], task_ids=t, **WRITTEN) for i, t in enumerate(ROWS)])
    assert torch.equal(model.generate(sound, task_ids=ROWS, **WRITTEN), want)
    assert torch.equal(model.generate(input_features=sound, task_ids=ROWS, **WRITTEN), want)


MISTAKES = {
    "no task": ({"task_ids": None}, RoutingError, "several tasks"),
    "an unknown task": ({"task_ids": ["chat", "cod", "chat"]}, RoutingError, "Did you mean 'code'"),
    "too few": ({"task_ids": ["chat", "code"]}, RoutingError, "2 task ids for 3 rows"),
    "the base alone": ({"task_ids": ["chat", None, "code"]}, RoutingError, "has no task"),
    "a text": ({"input_ids": "Hello"}, TaskError, "bad input_ids"),
    "texts": ({"input_ids": ["Hello", "you", "all"]}, TaskError, "bad input_ids"),
    "one row's tokens": ({"input_ids": torch.tensor([5, 6])}, TaskError, "bad input_ids"),
    "real numbers": ({"input_ids": torch.rand(3, 4)}, TaskError, "bad input_ids"),
    "a dictionary": ({"generation_config": {"max_new_tokens": 3}}, TaskError, "bad generation_config"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake):
    model, inputs = kept_writer("gpt2")
    given, kind, match = MISTAKES[mistake]
    with pytest.raises(kind, match=match) as caught:
        model.generate(**{"task_ids": ROWS, **inputs, **given}, **WRITTEN)
    assert all((caught.value.where, caught.value.got, caught.value.allowed, caught.value.try_))


@pytest.mark.parametrize(("model_type", "head"), [("bert", None), ("bert", "sequence-classification"), ("gpt2", None)])
def test_a_base_that_writes_nothing_says_so(model_type, head):
    task = Task("a", OwnHead()) if head else Task("a")
    model = MultiTaskModel.from_base(tiny_model(model_type, head), [task], "lora")
    with pytest.raises(TaskError, match="writes no text") as caught:
        model.generate(torch.full((2, 3), 5), task_ids="a")
    assert all((caught.value.where, caught.value.got, caught.value.allowed, caught.value.try_))
    assert model.generation_config is None


def test_seq2seq_trainer_scores_what_the_tasks_write(tmp_path):
    rows = [{"text": f"w{i} w{i + 1}", "label": f"w{i + 2} w{i + 3}"} for i in range(4)]
    tokenizer = tiny_tokenizer()
    tasks = [Task(name, OwnHead(labels="text"), data={"train": rows, "validation": rows}) for name in ("a", "b")]
    mix = TaskMixture(tasks, tokenizer, batch_size=4)
    model = MultiTaskModel.from_base(tiny_model("t5", "seq2seq-lm"), tasks, "lora")
    arguments = Seq2SeqTrainingArguments(
        str(tmp_path),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=4,
        predict_with_generate=True,
        generation_config=GenerationConfig(max_new_tokens=4, pad_token_id=0, decoder_start_token_id=0),
        report_to="none",
        use_cpu=True,
    )
    trainer = Seq2SeqTrainer(
        model, arguments, train_dataset=mix.train, data_collator=mix.collator, processing_class=tokenizer
    )
    split = mix.dataset("validation")
    found = trainer.predict(split)
    assert model.generation_config is model.base.generation_config
    batch = mix.collator([split[i] for i in range(4)])
    want = model.eval().generate(**{k: v for k, v in batch.items() if k != "labels"})
    assert torch.from_numpy(found.predictions[:4, : want.shape[1]]).equal(want)
