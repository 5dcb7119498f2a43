"""Every other command: what it prints for people, and what for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hfadapt import hookimpl, plugins
from hfadapt.cli import cli
from hfadapt.cli.group import COMMANDS, LazyGroup
from hfadapt.errors import ArchitectureError, DataError, RegistryError

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join(map(str, (ROOT, ROOT / "kernels", ROOT / "plugins"))),
    "HFADAPT_PLUGINS": "",
}


def test_help_imports_nothing_heavy() -> None:
    """Its time is that of its imports: 0.13 s without these, and seconds with one of them."""
    code = "import sys, hfadapt.cli; hfadapt.cli.cli(['--help'], standalone_mode=False); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    heavy = {"torch", "transformers", "numpy", "datasets", "peft", "matplotlib", "rich"}
    assert not heavy & set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_agrees_with_the_list(name: str, hfadapt) -> None:
    assert "Usage:" in hfadapt(name, "--help").output
    assert COMMANDS[name][1].endswith(".")


def test_an_unknown_command_names_the_nearest(hfadapt) -> None:
    assert "Did you mean 'train'?" in hfadapt("trian", status=2).output


def test_errors_of_hfadapt_come_without_a_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "hfadapt", "train", "missing.yaml"], env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_methods_lists_every_registered_method(hfadapt) -> None:
    rows = json.loads(hfadapt("methods", "--json").stdout)
    assert {row["method"] for row in rows} == set(plugins.methods())
    assert "pal" in hfadapt("methods").output


def test_methods_shows_the_options_of_one(hfadapt) -> None:
    shown = json.loads(hfadapt("methods", "pal", "--json").stdout)
    assert {"size", "num_heads", "layers"} <= {field["name"] for field in shown["fields"]}
    with pytest.raises(RegistryError, match="Did you mean 'pal'"):
        hfadapt("methods", "pall")


def test_plugins_shows_where_each_came_from(hfadapt) -> None:
    rows = json.loads(hfadapt("plugins", "--json").stdout)
    assert all(row["status"] == "loaded" for row in rows if row["origin"] == "hfadapt")


def test_inspect_shows_slots_sizes_and_fitting_methods(hfadapt) -> None:
    found = json.loads(hfadapt("inspect", "distilbert", "--json").stdout)
    assert found["stacks"][0]["layers"] == 6
    assert "q_lin" in found["linears"]
    fits = {row["method"]: row for row in found["methods"]}
    assert fits["lora"]["parameters"] > 0
    assert "no pooler" in fits["pooler"]["why_not"]
    shown = hfadapt("inspect", "distilbert").output
    assert "names for LoRA" in shown
    slot = next(row for row in found["stacks"][0]["slots"] if row["slot"] == "layer_sum")
    assert slot["leaf"] in shown and "768 -> 3072" in shown and "no pooler" in shown


def test_inspect_refuses_a_model_that_cannot_be_mapped_and_says_why(hfadapt, tmp_path) -> None:
    config = {"model_type": "squeezebert", "vocab_size": 99, "hidden_size": 32, "embedding_size": 32}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ArchitectureError, match="no stack of equal layers was found"):
        hfadapt("inspect", tmp_path)


def test_doctor_says_which_implementation_serves_which_op(hfadapt) -> None:
    found = json.loads(hfadapt("doctor", "--json").stdout)
    assert found["versions"]["torch"] != "not installed"
    assert {"frozen_linear", "parallel_adapter_norm"} <= {row["op"] for row in found["kernels"]}
    assert all(row["runs"] or row["reason"] for row in found["kernels"])


def test_doctor_says_that_the_library_is_of_other_sources(hfadapt, monkeypatch: pytest.MonkeyPatch) -> None:
    from hfadapt_kernels import native

    monkeypatch.setattr(native, "isa", lambda: None)
    monkeypatch.setattr(native, "_load", lambda: "the C++ library was built from other sources")
    assert "off: the C++ library was built from other sources" in hfadapt("doctor", "--json").stdout


def test_data_lists_shows_and_names_what_can_be_built(hfadapt) -> None:
    names = [row["name"] for row in json.loads(hfadapt("data", "--json").stdout)]
    assert names[:3] == ["wn_relation", "sms_spam", "tweet_valence"]
    shown = json.loads(hfadapt("data", "show", "wn_relation", "--rows", 2).stdout)
    assert len(shown["rows"]) == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(shell: str, hfadapt) -> None:
    assert "_HFADAPT_COMPLETE" in hfadapt("completion", shell).output


def test_predict_mixes_tasks_and_reads_standard_input(finished: Path, hfadapt) -> None:
    adapter = finished / "adapter"
    rows = json.loads(
        hfadapt("predict", adapter, "w1 w2", "w80", "--task", "sms_spam", "--task", "tweet_valence", "--json").stdout
    )
    assert [row["task"] for row in rows] == ["sms_spam", "tweet_valence"]
    assert rows[0]["label"] in ("ham", "spam")
    assert isinstance(rows[1]["label"], float)
    pair = json.loads(hfadapt("predict", adapter, "w1", "--pair", "w2", "--json").stdout)
    assert [row["task"] for row in pair] == ["wn_relation"]
    piped = hfadapt("predict", adapter, "--task", "sms_spam", input="w1\nw2\n").output
    assert piped.count("sms_spam") == 2
    with pytest.raises(DataError, match="Did you mean 'sms_spam'"):
        hfadapt("predict", adapter, "w1", "--task", "sms_span")
    with pytest.raises(DataError, match="--pair"):
        hfadapt("predict", adapter, "w1", "--task", "wn_relation")
    with pytest.raises(DataError, match="no text to predict.*standard input holds none"):
        hfadapt("predict", adapter, "--task", "sms_spam", input="\n")


def test_evaluate_scores_named_data_and_files(finished: Path, hfadapt, tmp_path: Path) -> None:
    rows = tmp_path / "test.csv"
    rows.write_text("text,label\nw1 w2,0\nw80 w3,1\nw4,0\n")
    (tmp_path / "train.csv").write_text(rows.read_text())
    scores = json.loads(
        hfadapt(
            "evaluate", finished / "adapter", "--task", "sms_spam", "--data", f"sms_spam={tmp_path}", "--json"
        ).stdout
    )
    assert set(scores["tasks"]) == {"sms_spam"}
    assert 0 <= scores["macro"] <= 1


def test_a_plugin_adds_a_command(monkeypatch: pytest.MonkeyPatch, hfadapt) -> None:
    @click.command()
    def greet() -> None:
        """Say hello."""
        click.echo("hello")

    class Greeter:
        @hookimpl
        def register_commands(self, group: click.Group) -> None:
            group.add_command(greet)

    plugins.register(Greeter(), "greeter")
    try:
        assert isinstance(cli, LazyGroup)
        monkeypatch.setattr(cli, "_plugins_asked", False)
        assert hfadapt("greet").output == "hello\n"
        assert "Say hello." in hfadapt("--help").output
    finally:
        plugins.unregister("greeter")
        cli.commands.pop("greet", None)


def test_regularizers_lists_all_with_their_options(hfadapt) -> None:
    rows = json.loads(hfadapt("regularizers", "--json").stdout)
    assert {row["regularizer"] for row in rows} == set(plugins.regularizers())
    (smart,) = [row for row in rows if row["regularizer"] == "smart"]
    assert {"name": "epsilon", "type": "float | None", "default": "1e-05"} in smart["options"]
    assert smart["cost"] == 9 and smart["per_task"] == "yes"
    assert "inner_steps" in hfadapt("regularizers", "smart").output
    with pytest.raises(RegistryError, match="smart"):
        hfadapt("regularizers", "smrt")


def test_bench_regularizers_measures_beside_the_theory(hfadapt, tmp_path) -> None:
    small = ("--layers", "1", "--rows", "2", "--tokens", "4", "--hidden", "64", "--repeats", "1")
    output = tmp_path / "figures.json"
    hfadapt("bench", "regularizers", "--name", "smart", "--name", "sam", *small, "--output", str(output))
    found = json.loads(output.read_text())
    assert [(row["regularizer"], row["theory"]) for row in found["figures"]] == [("none", 3), ("smart", 9), ("sam", 6)]
    assert all(row["ms"] > 0 and row["units"] > 0 for row in found["figures"])
