"""``hfadapt train`` of a recipe with ``regularizer:``: it reaches training, and a resumed run equals a whole one."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from hfadapt.errors import CheckpointError, ConfigError
from hfadapt.recipes import RunResult
from hfadapt.training.regularizers.proximal import FILE

SMART = "regularizer={name: smart, epsilon: 0.05, sigma: 0.02, step_size: 0.04, momentum: [0.5, 0.9], solves: 2}"
R3F = "tasks.1.regularizer={name: r3f, sigma: 0.05}"
QUICK = ("--fast", "baselines=[]", "training.save_strategy=epoch", "mixing.batch=mixed")


@pytest.fixture(scope="module")
def regularized(recipe: Path, hfadapt, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("regularized") / "run"
    hfadapt("train", recipe, *QUICK, SMART, R3F, "--output", folder)
    return folder


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in RunResult.read(folder).arms[0].history if "loss" in line]


def test_a_recipes_regularizer_is_trained_with(recipe, hfadapt, regularized, tmp_path):
    hfadapt("train", recipe, *QUICK, "--output", tmp_path / "plain")
    weights = [load_file(folder / "adapter" / "model.safetensors") for folder in (regularized, tmp_path / "plain")]
    assert any(not weights[0][key].equal(weights[1][key]) for key in weights[0])
    assert losses(regularized) != losses(tmp_path / "plain")
    assert (regularized / "checkpoints" / "adapted" / "checkpoint-2" / FILE).is_file()


def cut_off(finished: Path, folder: Path) -> Path:
    """A run whose process died after its first checkpoint."""
    shutil.copytree(finished, folder)
    shutil.rmtree(folder / "checkpoints" / "adapted" / "checkpoint-4")
    shutil.rmtree(folder / "arms")
    (folder / "results.json").unlink()
    return folder


def test_a_resumed_run_equals_a_whole_one_bit_for_bit(recipe, hfadapt, regularized, tmp_path):
    run = cut_off(regularized, tmp_path / "run")
    hfadapt("train", recipe, *QUICK, SMART, R3F, "--resume", "--output", run)
    last = ("checkpoints", "adapted", "checkpoint-4", FILE)
    for part in (("adapter", "model.safetensors"), last):
        got, want = load_file(run.joinpath(*part)), load_file(regularized.joinpath(*part))
        assert got.keys() == want.keys() and all(got[key].equal(want[key]) for key in want), part
    assert losses(run) == losses(regularized)


def test_a_checkpoint_without_the_teacher_is_refused(recipe, hfadapt, regularized, tmp_path):
    run = cut_off(regularized, tmp_path / "run")
    (run / "checkpoints" / "adapted" / "checkpoint-2" / FILE).unlink()
    with pytest.raises(CheckpointError, match="holds no teacher"):
        hfadapt("train", recipe, *QUICK, SMART, R3F, "--resume", "--output", run)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("regularizer={name: smart, epsilon: 0}", "bad epsilon"),
        ("regularizer={name: smart, sigma: -1.0e-5}", "bad sigma"),
        ("regularizer={name: smart, epsilom: 1}", "unknown .*'epsilom'"),
        ("regularizer=smrt", "no regularizer 'smrt'.*Did you mean 'smart'"),
        ("regularizer={name: smart, solves: 50}", "bad solves.*at most the run's 4 optimizer steps"),
        ("regularizer={name: smart, momentum_switch: 50}", "bad momentum_switch.*at most the run's 4"),
        ("tasks.0.regularizer=sam", "goes over whole updates again, so it holds for all tasks or none"),
        ("regularizer={name: smart, mode: mtdnn_first}", "first release's loss is one of classes"),
    ],
    ids=str,
)
def test_bad_regularizers_are_refused_with_the_way_out(recipe, hfadapt, tmp_path, change, said):
    with pytest.raises(ConfigError, match=rf"(?s){said}"):
        hfadapt("train", recipe, *QUICK, change, "--output", tmp_path / "run")
