"""``search:`` compares trials by validation scores, goes on where it was cut off, and runs the best."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from hfadapt.errors import ConfigError
from hfadapt.recipes import RunResult
from hfadapt.recipes import trial as trials
from hfadapt.recipes.config import read_recipe
from hfadapt.recipes.report.plots import write_plots
from hfadapt.recipes.written import MARKER, foreign_files

SHORT = ("--fast", "baselines=[]", "training.num_train_epochs=1")
RATES = "training.learning_rate: {log: [1e-4, 1e-1]}, head_learning_rate: {range: [0.001, 0.1]}"
SPACE = f"{{{RATES}, method.size: {{choice: [2, 4, 8]}}}}"
SEARCH = f"search={{trials: 3, metric: macro, space: {SPACE}}}"


@pytest.fixture(scope="module")
def searched(recipe: Path, hfadapt, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("searched") / "run"
    hfadapt("train", recipe, *SHORT, SEARCH, "score_depths=[1]", "--output", run)
    return run


def test_every_trial_is_in_the_results_and_the_best_is_the_run(searched: Path) -> None:
    result = RunResult.read(searched)
    search = result.search
    assert (search["metric"], search["direction"], len(search["trials"])) == ("macro", "maximize", 3)
    scores = [trial["score"] for trial in search["trials"]]
    assert search["best"] == scores.index(max(scores))
    assert search["values"] == search["trials"][search["best"]]["values"]
    as_run = read_recipe(result.resolved)
    assert as_run.search is None
    assert as_run.method[0].size == search["values"]["method.size"]
    assert as_run.training["learning_rate"] == search["values"]["training.learning_rate"]
    assert as_run.head_learning_rate == search["values"]["head_learning_rate"]


def test_the_best_trial_is_the_adapted_run_to_the_last_bit(searched: Path) -> None:
    """Values of the model and of TrainingArguments are those of the trial; it was scored on validation."""
    result = RunResult.read(searched)
    last = [line["eval_macro"] for line in result.arms[0].history if "eval_macro" in line][-1]
    assert last == result.search["trials"][result.search["best"]]["score"]


def test_a_trial_has_all_that_the_run_trains_with(recipe: Path, hfadapt, tmp_path: Path) -> None:
    """Regularizer, AdapterDrop, early stopping and rates of a task work on the model of the trial, as on the run's."""
    run = tmp_path / "run"
    space = "{training.learning_rate: {log: [1e-3, 1e-2]}, tasks.sms_spam.learning_rate: {choice: [1e-2, 3e-2]}}"
    also = ("regularizer={name: smart, epsilon: 1e-2}", "adapter_drop=1", "early_stopping={patience: 1}")
    hfadapt("train", recipe, *SHORT, f"search={{trials: 2, space: {space}}}", *also, "--output", run)
    result = RunResult.read(run)
    last = [line["eval_macro"] for line in result.arms[0].history if "eval_macro" in line][-1]
    assert last == result.search["trials"][result.search["best"]]["score"]


def test_report_table_and_plots_show_the_search_and_the_depths(searched: Path) -> None:
    assert (searched / "plots" / "search.png").read_bytes().startswith(b"\x89PNG")
    assert (searched / "plots" / "depths.png").read_bytes().startswith(b"\x89PNG")
    table = (searched / "results.md").read_text("utf-8")
    assert "## Search: macro on validation, maximized" in table and "layers dropped" in table
    page = (searched / "report.html").read_text("utf-8")
    assert page.count("data:image/png;base64,") == 5 and "Trials of the search" in page


def test_what_a_search_writes_is_a_runs(searched: Path) -> None:
    names = json.loads((searched / MARKER).read_text())["files"]
    assert {"search/study.db", "plots/search.png", "plots/depths.png"} <= set(names)
    kept = (searched / MARKER).read_bytes()
    (searched / MARKER).unlink()
    try:
        assert foreign_files(searched) == []
    finally:
        (searched / MARKER).write_bytes(kept)


def test_a_search_that_was_cut_off_goes_on_to_the_same_trials(
    recipe: Path, searched: Path, hfadapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, trained = tmp_path / "run", []
    one_trial = trials.run_trial

    def cut(*arguments):
        trained.append(arguments[-1])
        if len(trained) == 2:
            raise KeyboardInterrupt
        one_trial(*arguments)

    monkeypatch.setattr(trials, "run_trial", cut)
    options = (*SHORT, SEARCH, "--output", run)
    with pytest.raises((KeyboardInterrupt, AssertionError)):
        hfadapt("train", recipe, *options)
    hfadapt("train", recipe, *options, "--resume")
    assert trained == [0, 1, 1, 2]
    assert RunResult.read(run).search == RunResult.read(searched).search
    assert RunResult.read(run).arms[0].scores == RunResult.read(searched).arms[0].scores


def test_a_trial_that_was_cut_off_is_trained_again(
    recipe: Path, searched: Path, hfadapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    recipe_with = trials.recipe_with
    asked = []

    def cut(*arguments):
        asked.append(1)
        if len(asked) == 6:  # the second trial, when it makes its optimizer
            raise RuntimeError("cut off")
        return recipe_with(*arguments)

    options = (*SHORT, SEARCH, "--output", run)
    with monkeypatch.context() as patch:
        patch.setattr(trials, "recipe_with", cut)
        with pytest.raises(RuntimeError, match="cut off"):
            hfadapt("train", recipe, *options)
    hfadapt("train", recipe, *options, "--resume")
    assert RunResult.read(run).search == RunResult.read(searched).search


def test_a_score_that_is_no_number_is_shown_and_not_chosen(recipe: Path, hfadapt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    space = "search={trials: 2, metric: loss, space: {training.learning_rate: {choice: [1e-3, 1e30]}}}"
    search = None
    for seed in range(1, 5):
        run = tmp_path / f"run{seed}"
        try:
            hfadapt("train", recipe, *SHORT, space, f"seed={seed}", "--output", run)
        except ConfigError as error:
            assert "no trial of the search has a score that is a number" in str(error)
            continue
        search = RunResult.read(run).search
        if None in [trial["score"] for trial in search["trials"]]:
            break
    assert search is not None and search["direction"] == "minimize"
    assert search["values"] == {"training.learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("search.metric=accuracy", r"command line \(search.metric\).*no evaluation reports.*allowed: .*macro.*loss"),
        ("search.direction=minimize", r"search.direction.*more is better.*direction: maximize"),
        ("search.space={training.lr: {log: [1e-4, 1]}}", "nothing that can be searched"),
        ("score_depths=[1, 2]", r"command line \(score_depths\).*no layer of the adapter; got: 2; allowed: 0 to 1"),
        ("score_depths=[-1]", "got: -1"),
    ],
)
def test_what_cannot_be_searched_or_scored_is_refused_by_a_dry_run(
    recipe: Path, hfadapt, tmp_path: Path, change: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        hfadapt("train", recipe, *SHORT, SEARCH, change, "--output", tmp_path / "run", "--dry-run")


def test_without_optuna_a_search_says_what_to_install(
    recipe: Path, hfadapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "optuna" else find(name, *rest)
    )
    with pytest.raises(ConfigError, match=r"command line \(search\).*pip install 'hfadapt\[search\]'"):
        hfadapt("train", recipe, *SHORT, SEARCH, "--output", tmp_path / "run", "--dry-run")


def test_a_dry_run_says_what_will_be_searched_and_scored(recipe: Path, hfadapt, tmp_path: Path) -> None:
    said = hfadapt(
        "train", recipe, *SHORT, SEARCH, "score_depths=[1]", "--output", tmp_path / "run", "--dry-run"
    ).output
    assert "search: 3 trials over training.learning_rate, head_learning_rate, method.size" in said
    assert "without the deltas of the lowest 1 layers" in said
    assert not (tmp_path / "run").exists()


def test_depth_0_is_the_run_and_dropping_changes_scores_not_the_model(searched: Path, tmp_path: Path) -> None:
    result = RunResult.read(str(searched))
    assert list(result.depths) == ["0", "1"]
    assert result.depths["0"]["macro"] == result.arms[0].macro
    assert set(result.depths["1"]["scores"]) == set(result.tasks)
    assert result.proof["reload"]["bit_identical"] is True
    assert "depths.png" in {path.name for path in write_plots(result, tmp_path).values()}
