"""``hfadapt train --overwrite`` replaces a run by one that has ended, and nothing else by anything."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hfadapt.errors import ConfigError, HFAdaptError
from hfadapt.recipes import RunResult
from hfadapt.recipes import run as main
from hfadapt.recipes.written import MARKER, foreign_files

SHORT = ("--fast", "baselines=[]", "training.max_steps=1")


def test_a_finished_run_lists_every_file_that_it_wrote(finished: Path) -> None:
    listed = set(json.loads((finished / MARKER).read_text())["files"])
    found = {path.relative_to(finished).as_posix() for path in finished.rglob("*") if path.is_file()}
    assert found == listed | {MARKER}


def test_every_name_that_a_run_writes_is_known_where_it_was_cut_off(recipe: Path, hfadapt, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hfadapt("train", recipe, *SHORT, "training.save_strategy=steps", "training.save_steps=1", "--output", run)
    assert list(run.glob("checkpoints/adapted/checkpoint-1/optimizer.pt"))
    (run / MARKER).unlink()
    assert foreign_files(run) == []


def test_overwrite_twice_and_over_a_run_of_an_older_version(
    recipe: Path, finished: Path, hfadapt, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    (run / MARKER).unlink()
    for seed in (1, 2):
        said = hfadapt("train", recipe, *SHORT, f"seed={seed}", "--output", run, "--overwrite").output
        assert f"Report: {run / 'report.html'}" in said
        assert [arm.name for arm in RunResult.read(run).arms] == ["adapted"]
        assert RunResult.read(run).proof["reload"]["folder"] == str(run / "adapter")
        assert not (run / "arms" / "frozen_head.json").exists()
        assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "change",
    [
        "nonsense=1",
        "method={method: lora, target_modules: [qproj]}",
        "tasks.sms_spam.data=nowhere.csv",
        "tasks.sms_spam.limit={dev: 3}",
        "model=nowhere",
        "training.num_train_epochs=-1",
    ],
)
def test_a_recipe_that_fails_leaves_the_finished_run(
    recipe: Path, finished: Path, hfadapt, tmp_path: Path, change: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises((HFAdaptError, OSError)):
        hfadapt("train", recipe, *SHORT, change, "--output", run, "--overwrite")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_first_run_that_fails_leaves_no_folder(recipe: Path, hfadapt, tmp_path: Path) -> None:
    with pytest.raises(HFAdaptError):
        hfadapt("train", recipe, *SHORT, "method={method: lora, target_modules: [qproj]}", "--output", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("output", ["", ".", "..", "data"])
def test_overwrite_spares_the_folders_that_one_works_in(
    recipe: Path, hfadapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    work = tmp_path / "work"
    (work / "data").mkdir(parents=True)
    (work / "data" / "train.csv").write_text("text,label\na,0\nb,1\nc,0\nd,1\n")
    (work / "data" / "validation.csv").write_text("text,label\na,0\nb,1\n")
    monkeypatch.chdir(work)
    task = "tasks=[{name: mine, data: data, head: {kind: classification, num_labels: 2}}]"
    with pytest.raises(ConfigError, match="no folder to write to|deletes only what a run wrote"):
        hfadapt("train", recipe, *SHORT, task, "--output", output, "--overwrite")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["data", "train.csv", "validation.csv", "work"]


def test_overwrite_and_resume_go_on_with_the_run_that_was_cut_off(
    recipe: Path, finished: Path, hfadapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    options = (recipe, *SHORT, "--output", run, "--overwrite")
    with monkeypatch.context() as patch:
        patch.setattr(main.Run, "finish", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            hfadapt("train", *options)
    assert len(RunResult.read(run).arms) == 3
    assert "trained before" in hfadapt("train", *options, "--resume").output
    assert len(RunResult.read(run).arms) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
