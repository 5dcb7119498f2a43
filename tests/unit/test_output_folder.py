"""A run deletes what a run wrote and nothing else, and only when it has ended itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hfadapt.errors import ConfigError
from hfadapt.recipes import output
from hfadapt.recipes.config import Recipe, TaskSection
from hfadapt.recipes.output import OutputFolder
from hfadapt.recipes.written import MARKER


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Everything happens in a working folder below a home of the test's own."""
    work = tmp_path / "home" / "work"
    work.mkdir(parents=True)
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(work.parent))
    (work / "precious.txt").write_text("mine")
    (work / "data").mkdir()
    (work / "data" / "train.csv").write_text("text,label\n")
    (work / "base").mkdir()
    (work / "base" / "config.json").write_text("{}")
    return work.parent


def folder(
    path: str = "run", *, overwrite: bool = False, resume: bool = False, file: str | None = None
) -> OutputFolder:
    recipe = Recipe(
        model="base",
        tasks=(TaskSection("spam", data="data"), TaskSection("mail", data={"train": "data/train.csv"})),
        method=(),
        mixing=None,  # type: ignore[arg-type]  (never read)
        output=path,
    )
    return OutputFolder(recipe, Path(file) if file else None, overwrite=overwrite, resume=resume)


def finish(run: OutputFolder, mark: str = "new") -> None:
    """What a run writes, in short."""
    with run:
        for name in ("adapter/hfadapt_config.json", "plots/sampling.png", "arms/adapted.json", "results.md"):
            (run.place / name).parent.mkdir(exist_ok=True)
            (run.place / name).write_text(mark)
        results = {"format_version": 1, "arms": [], "recipe": "", "proof": {}, "mark": mark}
        (run.place / "results.json").write_text(json.dumps(results))
        run.end()


def mark_of(path: str = "run") -> str:
    return json.loads((Path(path) / "results.json").read_text())["mark"]


def everything() -> dict[str, bytes]:
    top = Path.cwd().parent
    return {str(path.relative_to(top)): path.read_bytes() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        (".", "is the working folder"),
        ("..", "holds the working folder"),
        ("../work", "is the working folder"),
        ("../..", "holds the working folder"),
        ("/", "is a mount point"),
        ("data", "is data of task 'spam'"),
        ("base", "is the base"),
        ("recipes", "holds the recipe"),
        ("notes", "holds no run"),
    ],
)
def test_overwrite_refuses_by_name_what_is_no_runs(path: str, reason: str) -> None:
    for name in ("recipes/mine.yaml", "notes/today.txt"):
        Path(name).parent.mkdir()
        Path(name).write_text("x")
    before = everything()
    with pytest.raises(ConfigError, match=reason):
        folder(path, overwrite=True, file="recipes/mine.yaml")
    assert everything() == before


def test_overwrite_refuses_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    with pytest.raises(ConfigError, match="is the home folder"):
        folder(str(home), overwrite=True)


@pytest.mark.parametrize("path", ["", " ", "\t", "a\0b"])
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"resume": True}], ids=["plain", "overwrite", "resume"])
def test_no_path_is_not_the_working_folder(path: str, options: dict[str, bool]) -> None:
    with pytest.raises(ConfigError, match="no folder to write to"):
        folder(path, **options)


@pytest.mark.parametrize("path", ["precious.txt", "dangling"])
def test_a_file_and_a_link_to_nothing_are_no_folders(path: str) -> None:
    Path("dangling").symlink_to("nowhere")
    with pytest.raises(ConfigError, match="cannot write there"):
        folder(path, overwrite=True)


def test_a_folder_that_cannot_be_made_is_said_so() -> None:
    with pytest.raises(ConfigError, match="cannot be made"), folder("precious.txt/run"):
        pass


def test_overwrite_swaps_at_the_end_and_leaves_the_older_run_whole_until_then() -> None:
    finish(folder(), "old")
    run = folder(overwrite=True)
    with run:
        assert run.place.name == ".run.overwriting"
        assert mark_of() == "old"
    finish(folder(overwrite=True), "new")
    assert mark_of() == "new"
    assert not Path(".run.overwriting").exists()
    assert Path("precious.txt").read_text() == "mine"
    finish(folder(overwrite=True), "newer")  # as `make demo` does every time
    assert mark_of() == "newer"


def test_a_run_that_dies_early_leaves_nothing_and_one_that_was_killed_early_is_in_nobodys_way() -> None:
    with pytest.raises(RuntimeError), folder() as run:
        (run.place / "tokens").mkdir()
        (run.place / "tokens" / "a.safetensors").write_text("x")
        raise RuntimeError
    assert not Path("run").exists()
    Path("run").mkdir()
    with pytest.raises(RuntimeError), folder():
        raise RuntimeError
    assert not list(Path("run").iterdir())
    finish(folder(), "old")
    with pytest.raises(RuntimeError), folder(overwrite=True):
        raise RuntimeError
    assert mark_of() == "old" and not Path(".run.overwriting").exists()
    folder("killed").begin()  # never ended
    finish(folder("killed"))


@pytest.mark.parametrize("name", ["notes.txt", "adapter/notes.txt", "plots/mine.png", "checkpoints/best/x.json", "d/e"])
@pytest.mark.parametrize("state", ["finished", "cut off", "of an older version"])
def test_files_that_no_run_wrote_are_named_and_kept(name: str, state: str) -> None:
    if state == "cut off":
        run = folder()
        run.begin()
        (run.place / "arms").mkdir()
        (run.place / "arms" / "adapted.json").write_text("{}")
        del run  # lets go of the lock, as a killed process does
    else:
        finish(folder(), "old")
    if state == "of an older version":
        Path("run", MARKER).unlink()
    Path("run", name).parent.mkdir(exist_ok=True, parents=True)
    Path("run", name).write_text("mine")
    with pytest.raises(ConfigError, match=f"also holds what no run wrote: {name}"):
        folder(overwrite=True)
    with pytest.raises(ConfigError, match="not empty; .*; try: --resume, or --output"):
        folder()
    Path("run", name).unlink()
    finish(folder(overwrite=True))
    assert mark_of() == "new"


def test_what_stood_there_before_a_resumed_run_is_still_not_the_runs() -> None:
    finish(folder(), "old")
    Path("run/plots/mine.png").write_text("mine")
    finish(folder(resume=True), "resumed")
    with pytest.raises(ConfigError, match="plots/mine.png"):
        folder(overwrite=True)
    assert Path("run/plots/mine.png").read_text() == "mine"


def test_links_are_not_followed() -> None:
    finish(folder(), "old")
    Path("link").symlink_to("run")
    with pytest.raises(ConfigError, match="is a link to"):
        folder("link", overwrite=True)
    Path("run/arms/elsewhere").symlink_to(Path("data").resolve())
    with pytest.raises(ConfigError, match="arms/elsewhere"):
        folder(overwrite=True)
    assert Path("data/train.csv").exists()


def test_a_mount_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    finish(folder(), "old")
    monkeypatch.setattr(output.os.path, "ismount", lambda path: str(path).endswith("run"))
    with pytest.raises(ConfigError, match="is a mount point"):
        folder(overwrite=True)


def test_what_is_written_into_the_older_run_meanwhile_is_not_lost() -> None:
    finish(folder(), "old")
    run = folder(overwrite=True)
    with pytest.raises(ConfigError, match=r"was not replaced.*notes\.txt"), run:
        (run.place / "results.json").write_text('{"mark": "new"}')
        Path("run/notes.txt").write_text("mine")
        run.end()
    assert mark_of() == "old" and mark_of(".run.overwriting") == "new"
    assert Path("run/notes.txt").read_text() == "mine"


def test_overwrite_and_resume_go_on_with_the_run_that_was_cut_off() -> None:
    finish(folder(), "old")
    with pytest.raises(ConfigError, match="no run that overwrites it was cut off"):
        folder(overwrite=True, resume=True)
    run = folder(overwrite=True)
    run.begin()
    (run.place / "arms").mkdir()
    (run.place / "arms" / "adapted.json").write_text("{}")
    del run
    with pytest.raises(ConfigError, match="two runs to go on from"):
        folder(resume=True)
    again = folder(overwrite=True, resume=True)
    again.begin()
    assert (again.place / "arms" / "adapted.json").exists() and mark_of() == "old"
    del again
    fresh = folder(overwrite=True)
    with fresh:
        assert not (fresh.place / "arms").exists()
    finish(folder(overwrite=True))
    assert mark_of() == "new"


def test_overwrite_and_resume_go_on_in_place_where_there_was_nothing_to_overwrite() -> None:
    run = folder(overwrite=True)
    run.begin()
    (run.place / "arms").mkdir()
    (run.place / "arms" / "adapted.json").write_text("{}")
    del run
    assert folder(overwrite=True, resume=True).place == Path("run")


def test_resume_writes_into_no_folder_that_is_no_runs() -> None:
    before = everything()
    with pytest.raises(ConfigError, match="no run to go on from"):
        folder("data", resume=True)
    assert everything() == before


def test_a_folder_of_somebody_elses_beside_is_not_taken_for_ours() -> None:
    finish(folder(), "old")
    Path(".run.overwriting").mkdir()
    Path(".run.overwriting/mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="this holds no run"):
        folder(overwrite=True)
    assert Path(".run.overwriting/mine.txt").read_text() == "mine" and mark_of() == "old"


def test_two_runs_do_not_write_to_one_folder() -> None:
    finish(folder(), "old")
    with folder(overwrite=True), pytest.raises(ConfigError, match="another run is writing there"):
        folder(overwrite=True)
    with folder(resume=True), pytest.raises(ConfigError, match="another run is writing there"):
        folder(overwrite=True)
    finish(folder(overwrite=True))


def test_the_swap_falls_back_to_two_renames(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: object, **__: object) -> None:
        raise OSError("no swap here")

    finish(folder(), "old")
    monkeypatch.setattr(output, "replace_folder", cannot)
    finish(folder(overwrite=True))
    assert mark_of() == "new"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["base", "data", "precious.txt", "run"]
