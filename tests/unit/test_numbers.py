"""Numbers that no training can mean are refused where they are written: configs, tasks, heads, mixtures, arguments."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from hfadapt import Annealed, Average, RobustAdapterDrop, Task, TaskMixture, Temperature, plugins
from hfadapt.data import MixingStrategy
from hfadapt.errors import CompositionError, ConfigError, HFAdaptError, TaskError
from hfadapt.errors.limits import require_number
from hfadapt.method import MethodConfig, MethodPreset
from hfadapt.multitask.heads import HEADS
from hfadapt.recipes.config import read_recipe
from hfadapt.testing.toy import tiny_tokenizer, toy_tasks

#: No option of any kind takes one of these.
NEVER = (math.nan, math.inf, -math.inf, 10**400, 1j, True)


def numeric_fields():
    found = []
    registry = plugins.methods()
    entries = {name: registry[name] for name in registry}
    classes = [entry.config_class for entry in entries.values() if not isinstance(entry, MethodPreset)]
    for cls in [*classes, *HEADS.values(), Task]:
        for field in dataclasses.fields(cls):
            kinds = {part.strip() for part in str(field.type).split("|")}
            if kinds & {"int", "float"}:
                found.append(pytest.param(cls, field.name, "float" in kinds, id=f"{cls.__name__}-{field.name}"))
    return found


@pytest.mark.parametrize(("cls", "name", "real"), numeric_fields())
def test_no_config_task_or_head_takes_a_number_that_is_none(cls, name, real):
    others = {"name": "t"} if cls is Task else {}
    if cls.__name__ == "Regression":
        others = {"high": 9.0} if name == "low" else {"low": -9.0}
    for value in NEVER if real else (*NEVER, 2.5):
        with pytest.raises(cls.field_error, match=f"bad {name}|{name}"):
            cls(**{**others, name: value})


def test_a_config_of_a_third_party_is_checked_without_its_help():
    @dataclasses.dataclass(frozen=True)
    class Theirs(MethodConfig):
        rate: float = 1.0
        count: int | None = None

        def __post_init__(self) -> None:
            """It forgets those of its base."""

    assert Theirs(2, 3) == Theirs(rate=2, count=3)
    for fields in ({"rate": math.inf}, {"rate": "1"}, {"rate": None}, {"count": 1.5}, {"count": math.nan}):
        with pytest.raises(ConfigError, match=f"bad {next(iter(fields))}"):
            Theirs(**fields)
    with pytest.raises(ConfigError, match="bad rate"):
        Theirs(math.nan)


@pytest.mark.parametrize("weights", [(math.nan, 1), (math.inf, 0), ("x", 1), (None, 1), (1,), 1, "ab", (True, 1)])
def test_weights_of_an_average_are_finite_numbers(weights):
    with pytest.raises(CompositionError):
        Average("a", "b", weights=weights)


@pytest.mark.parametrize("value", [*NEVER, -1, 0, "x"])
def test_loss_weights_and_inner_sizes_are_above_zero(value):
    with pytest.raises(TaskError, match="bad loss_weight"):
        Task("t", loss_weight=value)
    with pytest.raises(TaskError, match="bad inner_size"):
        HEADS["classification"](inner_size=value)


OPTIONS = ("batch_size", "epoch_steps", "epochs", "pad_to_multiple_of", "bucket_steps", "max_length", "seed")


@pytest.mark.parametrize("name", OPTIONS)
def test_options_of_a_mixture_are_whole_numbers_in_range(name):
    for value in (*NEVER, 2.5, "x", -1, *(() if name == "seed" else (0,))):
        with pytest.raises(ConfigError, match=f"TaskMixture: bad {name}"):
            TaskMixture(toy_tasks(), tiny_tokenizer(), **{name: value})


@pytest.mark.parametrize("value", [*NEVER, -1, "x", None])
def test_options_of_strategies_are_numbers(value):
    for make in (lambda: Annealed(value), lambda: Temperature(value)):
        with pytest.raises(ConfigError, match="bad"):
            make()


@pytest.mark.parametrize("value", [*NEVER, -1, 0.5, "x"])
def test_adapter_drop_takes_whole_numbers(value):
    for make in (lambda: RobustAdapterDrop(value), lambda: RobustAdapterDrop({"encoder": value})):
        with pytest.raises(ConfigError, match="bad max"):
            make()
    with pytest.raises(ConfigError, match="bad seed"):
        RobustAdapterDrop(seed=value)


def test_the_message_says_the_range_and_what_stands_outside_it():
    with pytest.raises(HFAdaptError, match=r"x: bad n; got: 0; allowed: a whole number >= 1 or -1 or None"):
        require_number("n", 0, where="x", whole=True, optional=True, least=1, also=(-1,))
    with pytest.raises(HFAdaptError, match=r"a finite number, 0 <= p < 1"):
        require_number("p", 1, where="x", least=0, below=1)
    assert require_number("n", -1, where="x", least=1, also=(-1,)) == -1


ARGUMENTS = {
    "learning_rate": -1e-3,
    "num_train_epochs": -1,
    "max_steps": -2,
    "weight_decay": math.nan,
    "warmup_steps": -5,
    "gradient_accumulation_steps": 0,
    "max_grad_norm": -1.0,
    "adam_beta1": 1.5,
    "adam_epsilon": math.inf,
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_trainer_refuses_arguments_that_no_training_can_mean(make_plain_trainer, name):
    with pytest.raises((ConfigError, ValueError), match=name):
        make_plain_trainer(**{name: ARGUMENTS[name]})


@pytest.fixture
def make_plain_trainer(tmp_path):
    from transformers import Trainer, TrainingArguments

    from hfadapt.testing.toy import toy_model

    def build(**options):
        tasks = toy_tasks()
        mix = TaskMixture(tasks, tiny_tokenizer())
        arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[], **options)
        return Trainer(
            toy_model(tasks), arguments, mix.collator, mix.train, compute_metrics=mix.metrics, callbacks=mix.callbacks
        )

    return build


RECIPE = """\
model: m
tasks:
  - {name: sms_spam, limit: {train: 60}}
method: {method: low_rank, size: 4}
mixing: {strategy: annealed, batch_size: 4}
training: {num_train_epochs: 2, learning_rate: 1e-3}
baselines: {full_finetuning: {learning_rate: 1e-4}}
"""


@pytest.mark.parametrize(
    "assignment",
    [
        "training.learning_rate=-1e-3",
        "training.learning_rate=.inf",
        "training.learning_rate=nan",
        "training.num_train_epochs=-1",
        "training.num_train_epochs=0",
        "training.max_steps=0",
        "training.warmup_steps=-1",
        "baselines.full_finetuning.learning_rate=-1",
        "baselines.full_finetuning.head_learning_rate=-1",
        "head_learning_rate=0",
        "head_learning_rate=.inf",
        "seed=-1",
        "adapter_drop=-1",
        "mixing.batch_size=0",
        "mixing.epoch_steps=-3",
        "mixing.strategy={name: annealed, end: .nan}",
        "method.size=-4",
        "method.dropout=.nan",
        "tasks.sms_spam.loss_weight=.inf",
        "tasks.sms_spam.loss_weight=-1",
        "tasks.sms_spam.max_length=0",
        "tasks.sms_spam.limit.train=-5",
        "tasks.sms_spam.head={kind: classification, num_labels: 1}",
    ],
)
def test_a_recipe_names_the_number_and_where_it_stands(assignment):
    key = assignment.partition("=")[0].rpartition(".")[2]
    with pytest.raises(ConfigError, match=rf"(command line|\(method\)).*{key}"):
        read_recipe(RECIPE, [assignment])


def test_the_recipe_itself_is_good():
    assert read_recipe(RECIPE).training["learning_rate"] == 1e-3
    assert read_recipe(RECIPE, ["training.max_steps=-1"]).training["max_steps"] == -1


@pytest.mark.parametrize(
    "answer", [[math.nan, 1, 1], [0, 0, 0], [-1, 1, 1], [1.0], [math.inf, 1, 1], None, "abc"], ids=str
)
def test_a_strategy_that_gives_no_probabilities_is_named(answer):
    class Broken(MixingStrategy):
        name = "broken"

        def probabilities(self, sizes, epoch, epochs):
            return answer

    mix = TaskMixture(toy_tasks(), tiny_tokenizer(), strategy=Broken())
    for read in (lambda: mix.train[0], mix.preview().to_dict):
        with pytest.raises(ConfigError, match=r"Broken\(\), epoch 1 of 3: a mixing strategy gives no probabilities"):
            read()


@pytest.mark.parametrize("answer", [[0, 1], np.zeros(3), np.full(14, 3), np.full(14, -1)], ids=str)
def test_a_strategy_that_draws_no_tasks_is_named(answer):
    class Broken(Annealed):
        def draw(self, sizes, epoch, epochs, count, start, stream):
            return answer

    with pytest.raises(ConfigError, match="draws no tasks"):
        TaskMixture(toy_tasks(), tiny_tokenizer(), strategy=Broken()).train[0]


def test_an_extreme_temperature_does_not_overflow():
    assert Temperature(1e-3).probabilities([10_000, 5_000], 1, 1).tolist() == [1.0, pytest.approx(0, abs=1e-300)]
