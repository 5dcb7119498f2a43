"""What contributors lean on fits together: make, marks of the tests, fragments, hooks before a commit, forms."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

import hfadapt
from tests.docs.project import ROOT, pyproject

MAKEFILE = (ROOT / "Makefile").read_text("utf-8")


def test_make_alone_lists_every_target() -> None:
    (phony,) = re.findall(r"^\.PHONY: ((?:.*\\\n)*.*)$", MAKEFILE, re.MULTILINE)
    listed = re.findall(r"^([a-z-]+):.*## \S", MAKEFILE, re.MULTILINE)
    assert sorted(listed) == sorted(phony.replace("\\\n", " ").split())
    assert ".DEFAULT_GOAL := help" in MAKEFILE


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("variables", "trained", "output"),
    [
        ((), "examples/minisuite-pals.yaml --output runs/demo --overwrite --fast", "runs/demo"),
        (("FULL=1",), "examples/minisuite-pals.yaml --output runs/demo-full --overwrite", "runs/demo-full"),
        (("QUICK=1",), "examples/quick.yaml method=lora --output runs/demo-quick/lora", "runs/demo-quick/pal"),
        (("QUICK=1", "OUT=out"), "examples/quick.yaml --output out/pal", "compare out/pal out/lora"),
    ],
    ids=["demo", "full", "quick", "quick elsewhere"],
)
def test_the_demo_trains_what_it_says(variables: tuple[str, ...], trained: str, output: str) -> None:
    command = ["make", "--dry-run", "--assume-old=.venv/.demo", "demo", *variables]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    said = " ".join(said.replace("\\\n", " ").split())
    assert f"hfadapt train {trained}" in said and output in said
    assert ("--fast" in said) is (variables == ())


def test_every_mark_is_left_out_by_default_and_can_be_chosen() -> None:
    options = pyproject()["tool"]["pytest"]["ini_options"]
    assert "--strict-markers" in options["addopts"]
    expression = options["addopts"][options["addopts"].index("-m") + 1]
    marks = [line.partition(":")[0] for line in options["markers"]]
    assert expression == " and ".join(f"not {mark}" for mark in sorted(marks))
    tests = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py") if path != Path(__file__)]
    for mark in marks:
        assert any(f"mark.{mark}" in text for text in tests), f"no test is marked {mark}"
        (target,) = re.findall(r"\(make (\w+)\)", dict(line.split(": ", 1) for line in options["markers"])[mark]) or [
            ""
        ]
        assert f"-m {mark} " in MAKEFILE if target else mark == "archives"


def test_tests_are_not_chosen_by_variables() -> None:
    switch = "HFADAPT_" + "TEST_"
    places = ("tests", "docs", "tools", "benchmarks", ".github", ".ci")
    files = [
        path
        for place in places
        for path in (ROOT / place).rglob("*")
        if path.suffix in {"", ".py", ".md", ".yml", ".sh"}
    ]
    found = [path for path in [ROOT / "Makefile", *files] if path.is_file() and switch in path.read_text("utf-8")]
    assert not found


@pytest.mark.parametrize("path", sorted((ROOT / "changelog.d").iterdir()), ids=lambda path: path.name)
def test_every_fragment_has_a_name_and_a_kind(path: Path) -> None:
    kinds = [kind["directory"] for kind in pyproject()["tool"]["towncrier"]["type"]]
    assert path.name == "README.md" or re.fullmatch(rf"(\d+|\+[a-z0-9-]+)\.({'|'.join(kinds)})\.md", path.name)
    assert path.read_text("utf-8").strip()


def test_the_hooks_before_a_commit_run_what_make_check_runs() -> None:
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]
    entries = {hook["id"]: shlex.split(hook["entry"]) for hook in repo["hooks"]}
    tools = {words[0] for name, words in entries.items() if name != "imports"}
    assert tools == {".venv/bin/ruff", ".venv/bin/clang-format"}
    assert "$(BIN)/ruff check ." in MAKEFILE and "$(BIN)/ruff format --check ." in MAKEFILE
    assert "$(BIN)/clang-format --dry-run -Werror" in MAKEFILE
    assert " ".join(entries["imports"][1:]).replace(".venv/bin", "$(BIN)") in MAKEFILE


@pytest.mark.parametrize("form", ["bug", "feature"])
def test_forms_ask_for_something(form: str) -> None:
    page = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text("utf-8"))
    assert page["name"] and page["description"]
    for part in page["body"]:
        assert part["type"] in {"textarea", "dropdown"} and part["id"] and part["attributes"]["label"]
    assert any(part.get("validations", {}).get("required") for part in page["body"])


def test_the_workflow_runs_what_must_hold_before_a_change_lands() -> None:
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text("utf-8"))["jobs"]
    assert ".ci/run" in [step.get("run") for job in jobs.values() for step in job["steps"]]
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o100


def test_the_citation_names_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert citation["version"] == hfadapt.__version__
    assert citation["license"] == pyproject()["project"]["license"]


def test_what_was_measured_names_no_folder_of_the_machine_that_measured():
    files = [path for path in (ROOT / "benchmarks").rglob("*") if path.suffix in (".json", ".md")]
    named = [
        path.name
        for path in files
        if re.search(r"/site-packages/|(?<![\w.])/(?:home|root|tmp)/", path.read_text("utf-8"))
    ]
    assert files and not named
