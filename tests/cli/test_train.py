"""``hfadapt train`` trains, checks itself, reports, and can be planned, resumed and refused."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import TrainerCallback

from hfadapt import hookimpl, plugins
from hfadapt.errors import ConfigError, HFAdaptError
from hfadapt.recipes import RunResult
from hfadapt.recipes.report import markdown_table
from hfadapt.recipes.report.card import model_card


def test_a_run_leaves_adapter_report_table_and_plots(finished: Path) -> None:
    for name in (
        "adapter/hfadapt_config.json",
        "adapter/model.safetensors",
        "adapter/README.md",
        "report.html",
        "results.json",
        "results.md",
        "plots/learning_curves.png",
        "plots/sampling.png",
        "plots/parameters.png",
    ):
        assert (finished / name).stat().st_size > 0, name


def test_results_hold_every_arm_with_scores_parameters_and_speed(finished: Path) -> None:
    result = RunResult.read(finished)
    assert [arm.name for arm in result.arms] == ["adapted", "frozen_head", "full_finetuning"]
    for arm in result.arms:
        assert set(arm.scores) == {"wn_relation", "sms_spam", "tweet_valence"}
        assert arm.tokens > 0
        assert arm.seconds > 0
        assert arm.steps > 0
    adapted, frozen, full = result.arms
    assert result.base_parameters < frozen.parameters_total < adapted.parameters_total < full.parameters_total
    assert full.parameters_total > 3 * result.base_parameters
    assert frozen.steps == adapted.steps


def test_the_reloaded_adapter_predicts_the_same_bits(finished: Path) -> None:
    assert RunResult.read(finished).proof["reload"]["bit_identical"] is True


def test_one_mixed_batch_predicts_what_each_task_alone_predicts(finished: Path) -> None:
    proof = RunResult.read(finished).proof["mixed_batch"]
    assert proof["predictions_equal"] is True
    assert proof["tasks"] == 3
    assert proof["largest_difference"] < 1e-5


def test_learning_curves_have_a_point_for_every_task_and_epoch(finished: Path) -> None:
    for arm in RunResult.read(finished).arms:
        for task, metric in (("wn_relation", "accuracy"), ("sms_spam", "f1"), ("tweet_valence", "pearson")):
            key = f"eval_{task}_{metric}"
            assert len([line for line in arm.history if key in line]) == 2


def test_the_report_stands_alone(finished: Path) -> None:
    page = (finished / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 3
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "identical to the last bit" in page


def test_the_card_carries_metadata_results_and_use(finished: Path) -> None:
    card = (finished / "adapter" / "README.md").read_text("utf-8")
    assert card.startswith("---\n")
    assert "library_name: hfadapt" in card
    assert markdown_table(RunResult.read(finished)) in card
    assert "## Papers\n\n- Stickland & Murray 2019, arXiv:1902.02671" in card
    loaded = ModelCard(card)
    assert loaded.data.model_name == "adapter" and len(loaded.data.eval_results) >= 3


def test_what_the_card_says_to_type_runs(finished: Path, hfadapt) -> None:
    folder = finished / "adapter"
    card = (folder / "README.md").read_text("utf-8").replace("path/to/this/folder", str(folder))
    code, command = (re.search(f"```{kind}\n(.*?)```", card, re.DOTALL).group(1) for kind in ("python", "sh"))
    found: dict[str, Any] = {}
    exec(code, found)
    assert [task.name for task in found["model"].tasks] == ["wn_relation", "sms_spam", "tweet_valence"]
    program, *arguments = shlex.split(command)
    assert program == "hfadapt" and "--pair" in arguments  # the first task reads two texts
    assert "wn_relation" in hfadapt(*arguments).output
    assert (folder / re.search(r"!\[.*\]\((.*)\)", card).group(1)).read_bytes().startswith(b"\x89PNG")


def test_a_card_of_tasks_on_one_text_asks_for_one(finished: Path) -> None:
    assert '--task wn_relation "a text"\n' in model_card(RunResult.read(finished))


def test_plugins_add_callbacks_to_a_run_and_sections_to_its_card(recipe: Path, hfadapt, tmp_path: Path, caplog) -> None:
    seen: list[object] = []

    class Steps(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    class Watcher:
        @hookimpl
        def configure_training(self, args, model, tasks):
            seen.append([task.name for task in tasks])
            return [Steps()]

        @hookimpl
        def model_card_sections(self, model):
            return [f"## Limits\n\nTrained on {len(model.tasks)} tasks.\n"]

    class Broken:
        @hookimpl
        def configure_training(self, args, model, tasks):
            raise SystemExit("no callbacks today")

    class Cardless:
        @hookimpl
        def model_card_sections(self, model):
            raise ValueError("no card today")

    class Odd:
        @hookimpl
        def model_card_sections(self, model):
            return "no list"

    added = {"watcher": Watcher(), "broken": Broken(), "cardless": Cardless(), "odd": Odd()}
    for name, plugin in added.items():
        plugins.register(plugin, name)
    try:
        hfadapt("train", recipe, "--fast", "baselines=[]", "training.max_steps=2", "--output", tmp_path / "run")
        errors = {record.name: record.error for record in plugins.report()}
    finally:
        for name in added:
            plugins.unregister(name)
    assert all(text in caplog.text for text in ("no callbacks today", "no card today"))
    assert "no callbacks today" in errors["broken"] and "no card today" in errors["cardless"]
    assert "'no list'" in errors["odd"] and not errors["watcher"]
    assert (tmp_path / "run" / "results.json").exists()
    assert seen == [["wn_relation", "sms_spam", "tweet_valence"], 1, 2]
    assert "## Limits\n\nTrained on 3 tasks." in (tmp_path / "run" / "adapter" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("training.load_best_model_at_end=true", r"training: TrainingArguments refuses these fields: .*strategy"),
        ("baselines={frozen_head: {load_best_model_at_end: true}}", "TrainingArguments refuses these fields"),
        (
            "baselines={full_finetuning: {metric_for_best_model: macr}}",
            "metric_for_best_model='macr'.*Did you mean 'macro'",
        ),
        ("baselines={full_finetuning: {metric_for_best_model: sms_spam_f1}}", "allowed: wn_relation_accuracy"),
    ],
    ids=str,
)
def test_what_training_would_refuse_is_refused_before_any_arm_trains(recipe, hfadapt, tmp_path, change, expected):
    with pytest.raises(ConfigError, match=expected):
        hfadapt("train", recipe, "--fast", "--dry-run", change, "--output", tmp_path / "nothing")


def test_a_dry_run_shows_the_plan_and_writes_nothing(recipe: Path, hfadapt, tmp_path: Path) -> None:
    output = tmp_path / "nothing"
    plan = json.loads(hfadapt("train", recipe, "--dry-run", "--json", "--output", output).stdout)
    assert plan["steps"] == 6
    assert plan["memory_bytes"]["total"] > plan["memory_bytes"]["weights"] > 0
    rows, shapes = plan["first_batch"]["rows"], plan["first_batch"]["shapes"]
    assert shapes["input_ids"][0] == len(rows) == 4 and {"task_ids", "labels", "attention_mask"} <= set(shapes)
    assert all(row["text"].startswith("[CLS]") for row in rows) and len({row["task"] for row in rows}) == 1
    assert len(plan["schedule"]["probabilities"]) == 2
    assert plan["seconds"]["update"] > 0 and plan["seconds"]["training"] == 6 * plan["seconds"]["update"]
    assert not output.exists()
    printed = hfadapt("train", recipe, "--dry-run", "--output", output).output
    assert "First batch: input_ids 4x" in printed and "time (estimate, of 3 updates made here): 0." in printed


def test_an_output_folder_in_use_is_not_overwritten_unasked(recipe: Path, finished: Path, hfadapt) -> None:
    with pytest.raises(ConfigError, match="--overwrite"):
        hfadapt("train", recipe)
    assert (finished / "results.json").exists()


def test_a_run_that_was_cut_off_resumes_to_the_same_numbers(recipe: Path, hfadapt, tmp_path: Path) -> None:
    options = ["training.save_strategy=epoch", "baselines=[]", "--fast", "--output", tmp_path / "run"]
    hfadapt("train", recipe, *options)
    whole = RunResult.read(tmp_path / "run").arms[0]
    checkpoints = tmp_path / "run" / "checkpoints" / "adapted"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["checkpoint-2", "checkpoint-4"]
    shutil.rmtree(checkpoints / "checkpoint-4")
    shutil.rmtree(tmp_path / "run" / "arms")  # written when an arm has ended, which this one now has not
    hfadapt("train", recipe, *options, "--resume")
    resumed = RunResult.read(tmp_path / "run").arms[0]
    assert resumed.scores == whole.scores
    assert [line["loss"] for line in resumed.history if "loss" in line] == [
        line["loss"] for line in whole.history if "loss" in line
    ]


def test_a_run_that_is_resumed_trains_no_arm_again_that_had_ended(
    recipe: Path, finished: Path, hfadapt, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    whole = RunResult.read(run)
    (run / "results.json").unlink()
    (run / "arms" / "full_finetuning-sms_spam.json").unlink()
    said = hfadapt("train", recipe, "--fast", "--resume", "--output", run).output
    again = RunResult.read(run)
    assert said.count("trained before") == 4
    assert [arm.scores for arm in again.arms] == [arm.scores for arm in whole.arms]
    assert again.arms[0] == whole.arms[0]
    assert again.proof == whole.proof
    with pytest.raises(ConfigError, match="no checkpoint to go on from"):  # under other settings no arm has ended
        hfadapt("train", recipe, "seed=1", "--fast", "--resume", "--output", run)


def test_tasks_stop_and_learn_as_the_recipe_says(recipe: Path, hfadapt, tmp_path: Path) -> None:
    options = ["baselines=[]", "--fast", "--output", tmp_path / "run", "training.num_train_epochs=3"]
    # nothing is better by so much, so the first score of a task is its best
    stopping = "early_stopping={patience: 1, threshold: 100, metrics: {sms_spam: accuracy, tweet_valence: null}}"
    hfadapt("train", recipe, *options, stopping, "tasks.wn_relation.learning_rate=0", "tasks.sms_spam.weight_decay=0.5")
    result = RunResult.read(tmp_path / "run")
    stopped = {line["stopped_task"]: line for line in result.arms[0].history if "stopped_task" in line}
    assert {task: line["step"] for task, line in stopped.items()} == {"wn_relation": 4, "sms_spam": 4}
    said = (tmp_path / "run" / "report.html").read_text("utf-8")
    assert "wn_relation stopped at step 4 of low_rank + heads, no better than" in said
    rows = [line for line in result.arms[0].history if "eval_wn_relation_accuracy" in line]
    assert len({line["eval_wn_relation_accuracy"] for line in rows}) == 1, "a learning rate of 0 learns nothing"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("early_stopping={patience: 0}", "patience"),
        ("early_stopping={patiance: 2}", "patiance.*Did you mean 'patience'"),
        ("early_stopping=true", "expected a mapping"),
        ("early_stopping={metrics: {sms_spam: f2}}", "not scored by that metric.*'f2'"),
        ("early_stopping={metrics: {sms_spma: f1}}", "no task 'sms_spma'.*sms_spam"),
        ("tasks.sms_spam.learning_rate=-1", "learning_rate"),
        ("tasks.sms_spam.weight_decay=nan", "weight_decay"),
        ("mixing.bucket_steps=0", "bucket_steps"),
    ],
    ids=str,
)
def test_what_stopping_and_rates_cannot_mean_is_refused(recipe: Path, hfadapt, tmp_path: Path, change, said) -> None:
    with pytest.raises(HFAdaptError, match=rf"(?s){said}"):
        hfadapt("train", recipe, "--fast", change, "--output", tmp_path / "run")


def test_tasks_of_a_recipe_share_an_update_that_comes_back(recipe: Path, hfadapt, tmp_path: Path) -> None:
    options = ["baselines=[]", "--fast", "--output", tmp_path / "run"]
    hfadapt("train", recipe, *options, "method={method: mtl_lora, r: 4, n_up: 2}")
    result = RunResult.read(tmp_path / "run")
    assert result.proof["reload"]["bit_identical"] is True and result.proof["mixed_batch"]["predictions_equal"] is True
    tensors = load_file(tmp_path / "run" / "adapter" / "model.safetensors")
    ups = {key: tensor for key, tensor in tensors.items() if "wn_relation" in key and key.endswith("lora_b")}
    assert ups and all(tensor.any() for tensor in ups.values())
    assert all(tensors[key.replace("wn_relation", "sms_spam")].equal(tensor) for key, tensor in ups.items())


def test_resume_without_a_checkpoint_says_how_to_get_one(recipe: Path, hfadapt, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="save_strategy=epoch"):
        hfadapt("train", recipe, "--fast", "--resume", "--output", tmp_path / "run")


def test_checkpoints_of_a_frozen_base_hold_no_base(recipe: Path, hfadapt, tmp_path: Path) -> None:
    options = ("training.save_strategy=epoch", "training.num_train_epochs=1", "--output", tmp_path / "run")
    hfadapt("train", recipe, "--fast", *options)
    for arm, whole in (("adapted", False), ("frozen_head", False), ("full_finetuning-sms_spam", True)):
        (file,) = (tmp_path / "run" / "checkpoints" / arm).glob("checkpoint-*/model.safetensors")
        with safe_open(file, "pt") as tensors:
            keys = set(tensors.keys())
        assert any(key.startswith("heads.") for key in keys), arm
        assert any("word_embeddings" in key or key.endswith("query.weight") for key in keys) is whole, arm
