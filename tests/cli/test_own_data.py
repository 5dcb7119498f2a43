"""A person with CSV files: what the data tell need not be said, what is wrong with them is told at once, and a run
remembers where they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfadapt import Classification, MultiTaskModel, Task
from hfadapt.errors import ConfigError, DataError, HFAdaptError
from hfadapt.recipes import RunResult, model_path
from hfadapt.recipes.config import read_recipe

RECIPE = """\
model: {model}
tasks:
  - {{name: mood, data: {{train: mood.csv, validation: dev.csv}}, columns: {{text: said}}}}
  - {{name: tags, data: tags.csv, head: token_classification}}
method: {{method: low_rank, size: 4}}
mixing: {{batch_size: 4, epoch_steps: 1}}
training: {{num_train_epochs: 1}}
output: run
"""
MOODS = ["bad", "no", "yes"]


@pytest.fixture(scope="module")
def place(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own_data")
    (folder / "recipe.yaml").write_text(RECIPE.format(model=recipe.parent / "encoder"))
    rows = [f'"a\nb",{MOODS[i % 3]}' for i in range(12)]
    (folder / "mood.csv").write_text("said,label\n" + "\n".join(rows) + "\n")
    (folder / "dev.csv").write_text("said,label\n" + "\n".join(rows[:6]) + "\n")
    (folder / "tags.csv").write_text("text,label\n" + "Anna saw Rome,B-PER O B-LOC\n" * 10)
    return folder


@pytest.fixture(scope="module")
def run(place: Path, hfadapt, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A finished run, and what it said."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        said = hfadapt("train", "recipe.yaml", "training.max_steps=2").output
    return place / "run", said


@pytest.fixture(autouse=True)
def in_its_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)


def test_texts_as_labels_tell_the_number_and_the_names_of_the_classes(run: tuple[Path, str]) -> None:
    mood, tags = json.loads((run[0] / "adapter" / "config.json").read_text())["tasks"]
    assert (mood["head"]["num_labels"], mood["label_names"]) == (3, MOODS)
    assert (tags["head"]["num_labels"], tags["label_names"]) == (3, ["B-LOC", "B-PER", "O"])


def test_tasks_without_a_test_split_are_scored_on_validation_and_that_is_said_first(run: tuple[Path, str]) -> None:
    folder, said = run
    assert RunResult.read(folder).splits == {"mood": "validation", "tags": "validation"}
    for line in (
        "mood: no labelled test rows; its scores will be those of its validation rows",
        "tags: no labelled validation rows; 1 of its 10 training rows are held out instead",
    ):
        assert said.index(line) < said.index("Training 2 tasks together")


def test_results_and_report_hold_the_recipe_as_it_was_run(run: tuple[Path, str]) -> None:
    result = RunResult.read(run[0])
    assert list(result.overrides) == ["training.max_steps=2"]
    again = read_recipe(result.resolved)
    assert again.training["max_steps"] == 2 and again.tasks == read_recipe(result.recipe).tasks
    assert "max_steps: 2" in (run[0] / "report.html").read_text()


def test_a_resolved_recipe_reads_back_to_the_same_values() -> None:
    tasks = "tasks: [{name: a, label_names: [no, 'yes', on], head: {kind: classification, num_labels: 3}}]"
    text = f"model: '1'\n{tasks}\nmethod: lora\ntraining: {{learning_rate: 1e-4}}\n"
    recipe = read_recipe(text, ["tasks.a.max_length=12", "seed=3"])
    again = read_recipe(recipe.resolved)
    assert again.tasks == recipe.tasks and again.training == recipe.training
    assert (again.model, again.seed, tuple(again.tasks[0].label_names or ())) == ("1", 3, ("no", "yes", "on"))


@pytest.mark.parametrize("below", ["", "adapter"])
def test_evaluate_remembers_the_data_of_a_run(run: tuple[Path, str], hfadapt, below, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)  # paths of the recipe count from where the run was started
    found = json.loads(hfadapt("evaluate", run[0] / below, "--json").stdout)
    adapted = RunResult.read(run[0]).arms[0]
    assert found["tasks"] == adapted.scores and found["splits"] == {"mood": "validation", "tags": "validation"}
    with pytest.raises(DataError, match="no split 'test'"):
        hfadapt("evaluate", run[0] / below, "--split", "test")


def test_base_takes_the_place_of_the_recorded_one(run: tuple[Path, str], recipe: Path, hfadapt, monkeypatch) -> None:
    config = run[0] / "adapter" / "hfadapt_config.json"
    before = config.read_text()
    lost = json.loads(before) | {"base_model_name_or_path": "/gone", "config_sha256": None, "weights_sha256": None}
    config.write_text(json.dumps(lost))
    try:
        with pytest.raises(HFAdaptError, match="--base"):
            hfadapt("predict", run[0], "a b", "--task", "mood")
        for command in (("predict", run[0], "a b", "--task", "mood"), ("evaluate", run[0], "--task", "mood")):
            assert "mood" in hfadapt(*command, "--base", recipe.parent / "encoder").output
    finally:
        config.write_text(before)


def test_all_that_is_wrong_with_data_is_told_at_once_with_file_line_and_column(place: Path, hfadapt) -> None:
    rows = (place / "mood.csv").read_text()
    (place / "ragged.csv").write_text(rows + "c,bad,more\nd\n")
    (place / "unknown.csv").write_text(rows.replace("no", "oh", 1) + "c,\n")
    (place / "short.csv").write_text("text,label\nAnna saw,B O\nAnna saw Rome,O O\n")
    changes = ["tasks.mood.data={train: mood.csv, validation: unknown.csv}", "tasks.tags.data=short.csv"]
    with pytest.raises(DataError) as caught:
        hfadapt("train", "recipe.yaml", *changes, "--dry-run")
    places = [str(error.where) for error in caught.value.found]
    assert places == [
        "unknown.csv, line 4, column 'label' (task 'mood', validation)",
        "unknown.csv, line 26, column 'label' (task 'mood', validation)",
        "short.csv, line 3, column 'label' (task 'tags', train)",
    ]
    for error in caught.value.found:
        assert error.got and error.allowed and error.try_ and str(error.where) in str(caught.value)
    with pytest.raises(DataError) as caught:
        hfadapt("train", "recipe.yaml", "tasks.mood.data=ragged.csv", "tasks.tags.data=missing.csv", "--dry-run")
    assert [str(error.where) for error in caught.value.found] == [
        "ragged.csv, line 26", "ragged.csv, line 27", "missing.csv"
    ]  # fmt: skip


def test_a_number_of_classes_that_the_data_contradict_is_refused(hfadapt) -> None:
    with pytest.raises(DataError, match="num_labels 2, and 3 labels: 'bad', 'no', 'yes'"):
        hfadapt("train", "recipe.yaml", "tasks.mood.head={kind: classification, num_labels: 2}", "--dry-run")


def test_a_dry_run_asks_for_everything_that_the_run_will_need(place: Path, hfadapt, monkeypatch) -> None:
    plan = json.loads(hfadapt("train", "recipe.yaml", "--dry-run", "--json", "--output", "other").stdout)
    assert plan["scored"] == {"validation": ["mood", "tags"]} and len(plan["notes"]) == 3
    assert 0 < plan["disk_bytes"]["total"] < plan["disk_bytes"]["free"]
    monkeypatch.setattr("transformers.integrations.integration_utils.is_clearml_available", lambda: False)
    changes = ["training.report_to=[wandbb, clearml]", "training.push_to_hub=true", "training.hub_model_id=a/b/c"]
    (place / "file").write_text("")
    with pytest.raises(ConfigError) as caught:
        hfadapt("train", "recipe.yaml", "--dry-run", *changes, "--output", "file/below")
    said = str(caught.value)
    for part in ("Did you mean 'wandb'?", "pip install clearml", "hub_model_id: not a name of the hub", "is a file"):
        assert part in said
    assert all(e.where and e.got and e.allowed for e in caught.value.found) and not (place / "other").exists()
    with pytest.raises(ConfigError, match="the disk is too full"):
        monkeypatch.setattr("hfadapt.recipes.preflight.shutil.disk_usage", lambda _: type("U", (), {"free": 10}))
        hfadapt("train", "recipe.yaml", "--dry-run", "--output", "other")


def test_a_base_that_a_package_carries_is_saved_under_that_name(recipe: Path, monkeypatch, tmp_path: Path) -> None:
    folder = recipe.parent / "encoder"

    class Carrier:
        files = (folder / "config.json", folder / "model.safetensors")

        def locate_file(self, path: str) -> Path:
            return Path(path)

    monkeypatch.setattr("hfadapt.adapters.model_source.distribution", {"carrier": Carrier()}.__getitem__)
    monkeypatch.setattr("hfadapt.adapters.model_source._PACKAGES", {})  # the folder is other tests' too
    task = Task("mood", Classification(2))
    for name in ("package:carrier", model_path("package:carrier")):
        model = MultiTaskModel.from_pretrained(name, tasks=task, method="lora")
        model.save_pretrained(tmp_path / "saved")
        for file in ("hfadapt_config.json", "config.json"):
            saved = json.loads((tmp_path / "saved" / file).read_text())
            assert saved["base_model_name_or_path"] == "package:carrier"
        assert MultiTaskModel.from_pretrained(tmp_path / "saved").tasks == (task,)


def test_data_with_one_class_are_refused(place: Path, hfadapt) -> None:
    (place / "one.csv").write_text("said,label\na,b\nc,b\n")
    with pytest.raises(DataError, match="one label only; got: 'b'"):
        hfadapt("train", "recipe.yaml", "tasks.mood.data=one.csv", "--dry-run")


def test_a_base_that_is_not_there_is_named_with_the_nearest(recipe: Path, hfadapt) -> None:
    near = str(recipe.parent / "encodr")
    for command in (("train", "recipe.yaml", "--dry-run", f"model={near}"), ("inspect", near)):
        with pytest.raises(ConfigError, match="(?s)the base cannot be loaded.*Did you mean '.*/encoder'"):
            hfadapt(*command)
