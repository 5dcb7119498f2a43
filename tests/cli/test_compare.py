"""Runs beside each other, and what a plugin brings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hfadapt.errors import DataError, RegistryError


@pytest.fixture(scope="module")
def pair(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run, and one whose recipe and scores were other ones."""
    other = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(finished, other)
    results = json.loads((other / "results.json").read_text())
    text = results["resolved"]
    results["resolved"] = text.replace("\n  size: 4", "\n  size: 8").replace("wn_relation", "wn_relation2")
    results["arms"][0]["scores"]["sms_spam"]["f1"] = 0.75
    (other / "results.json").write_text(json.dumps(results))
    return finished, other


def test_compare_shows_scores_cost_and_what_differs_in_the_recipes(pair: tuple[Path, Path], hfadapt) -> None:
    found = json.loads(hfadapt("compare", *pair, "--json").stdout)
    assert list(found["runs"]) == ["run", "other"]
    assert found["runs"]["other"]["scores"]["sms_spam"]["f1"] == 0.75
    assert found["differences"]["method.size"] == {"run": 4, "other": 8}
    assert {key.split(".")[0] for key in found["differences"]} == {"method", "tasks"}
    shown = hfadapt("compare", *pair).output
    for part in ("sms_spam f1", "0.7500", "params a task", "train s", "method.size"):
        assert part in shown


def test_two_runs_of_one_recipe_have_no_difference(finished: Path, hfadapt, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "again")
    assert json.loads(hfadapt("compare", finished, tmp_path / "again", "--json").stdout)["differences"] == {}


def test_a_recipe_of_what_is_not_here_is_compared_as_it_was_written(pair: tuple[Path, Path], hfadapt, tmp_path) -> None:
    shutil.copytree(pair[1], tmp_path / "lost")
    results = json.loads((tmp_path / "lost" / "results.json").read_text())
    results["resolved"] = results["resolved"].replace("method: low_rank", "method: of_a_plugin_that_is_gone")
    (tmp_path / "lost" / "results.json").write_text(json.dumps(results))
    found = json.loads(hfadapt("compare", pair[0], tmp_path / "lost", "--json").stdout)
    assert "no method 'of_a_plugin_that_is_gone'" in found["as_written"]
    assert found["differences"]["method.method"] == {"run": "low_rank", "lost": "of_a_plugin_that_is_gone"}
    assert "compared as they were written" in hfadapt("compare", pair[0], tmp_path / "lost").output


def test_what_cannot_be_compared_is_refused(finished: Path, hfadapt, tmp_path: Path) -> None:
    for runs in ((), (finished,), (finished, finished)):
        with pytest.raises(DataError, match="nothing to compare"):
            hfadapt("compare", *runs)
    with pytest.raises(DataError, match="no run has ended there.*without results.json"):
        hfadapt("compare", finished, tmp_path)


def test_a_plugin_is_shown_with_what_it_registered(hfadapt) -> None:
    names = [one["name"] for one in json.loads(hfadapt("plugins", "--json").stdout)]
    shown = {name: json.loads(hfadapt("plugins", "show", name, "--json").stdout) for name in names}
    assert any("lora" in one["registered"].get("methods", ()) for one in shown.values())
    assert all(one["status"] == "loaded" and one["registered"] for one in shown.values())
    assert names[0] in hfadapt("plugins", "show", names[0]).output
    with pytest.raises(RegistryError, match="Did you mean"):
        hfadapt("plugins", "show", names[0] + "x")
