"""A process that dies at any call to the file system leaves a folder that is the old save or the new one, whole."""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hfadapt
from hfadapt.adapters import atomic
from hfadapt.adapters import files as adapter_files
from hfadapt.adapters.files import CONFIG_FILE, OLD_CONFIG_FILE, WEIGHTS_FILE, read_config, read_tensors
from hfadapt.errors import CheckpointError
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks
from hfadapt.training import last_checkpoint

# what changes the disk: a death between two calls that only read is one before the next of these
CALLS = (
    *("chmod", "fsync", "ftruncate", "link", "mkdir", "open", "remove", "rename", "replace", "rmdir", "symlink"),
    *("truncate", "unlink", "utime", "write"),
)


class Died(BaseException):
    """The process is gone: nothing below the call that raises it runs any more."""


@contextlib.contextmanager
def dying_at(last: int):
    """Let the process die at its call number ``last`` to the file system; yields a list that counts the calls."""
    count = [0]

    def mortal(call):
        def run(*args, **kwargs):
            count[0] += 1
            if count[0] >= last:
                raise Died
            return call(*args, **kwargs)

        return run

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, mortal(getattr(os, name)))
        opened = mortal(io.open)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        patch.setattr(atomic, "_exchange", mortal(atomic._exchange))
        if "safetensors.torch" in sys.modules:
            real = sys.modules["safetensors.torch"].save_file

            def half_written(tensors, path, *args, **kwargs):
                real(tensors, path, *args, **kwargs)
                count[0] += 1
                if count[0] >= last:
                    # what dies is not always at a boundary of a call
                    with io.FileIO(path, "r+") as file:
                        file.truncate(40)
                    raise Died

            patch.setattr("safetensors.torch.save_file", half_written)
            patch.setattr(adapter_files, "save_file", half_written)
        yield count


def no_swap(first, second):
    raise OSError(errno.EINVAL, "this file system knows no swap")


def set_all(model, value):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hfadapt" in name or name.startswith("heads."):
                parameter.fill_(value)


def lora(alpha, value):
    torch.manual_seed(0)
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(r=2, lora_alpha=alpha), "a", verify=False)
    set_all(model, value)
    return model


def old_and_new(kind):
    """Two ways to write a folder that differ in config and weights."""
    if kind == "save_pretrained":
        models = [toy_model(toy_tasks(), method=hfadapt.LoRA(r=2, lora_alpha=alpha)) for alpha in (16, 96)]
        for value, model in enumerate(models, 1):
            set_all(model, float(value))
        return [model.save_pretrained for model in models]
    if kind == "save_peft":
        pytest.importorskip("peft")
    write = getattr(hfadapt, kind)
    return [functools.partial(write, lora(16, 1.0)), functools.partial(write, lora(96, 2.0))]


def what_is_there(folder: Path):
    """Config and weights as a reader finds them, after what a reader does first."""
    if (folder / OLD_CONFIG_FILE).exists():
        config = json.loads((folder / OLD_CONFIG_FILE).read_text())
        weights = load_file(folder / WEIGHTS_FILE)
        return config["lora_alpha"], {float(t.flatten()[0]) for t in weights.values()}
    config = read_config(folder)
    tensors = read_tensors(folder, config["weights_sha256"])
    assert not (folder / "model.safetensors").exists() or not (folder / WEIGHTS_FILE).exists(), "two sets of weights"
    alphas = {part["lora_alpha"] for parts in config["adapters"].values() for part in parts}
    return alphas.pop(), {float(t.flatten()[0]) for t in tensors.values()}


def mine(folder):
    assert (folder / "notes.txt").read_text() == "mine"
    assert (folder / "deep" / "er" / "notes.txt").read_text() == "mine too"


@pytest.mark.parametrize("swap", [True, False], ids=["swap", "no-swap"])
@pytest.mark.parametrize("kind", ["save", "save_pretrained", "save_peft"])
def test_a_save_over_an_older_one_dies_anywhere_and_leaves_the_old_or_the_new(kind, swap, tmp_path, monkeypatch):
    if not swap:
        monkeypatch.setattr(atomic, "_exchange", no_swap)
    write_old, write_new = old_and_new(kind)
    allowed = [(16, {1.0}), (96, {2.0})]
    folder = tmp_path / "out"
    seen = []
    for last in range(1, 1000):
        write_old(folder)
        (folder / "deep" / "er").mkdir(parents=True, exist_ok=True)
        (folder / "notes.txt").write_text("mine")
        (folder / "deep" / "er" / "notes.txt").write_text("mine too")
        assert {path.name for path in tmp_path.iterdir()} == {"out"}, "leftovers of a killed save"
        with dying_at(last) as count, contextlib.suppress(Died):
            write_new(folder)
        if not swap and kind == "save_peft" and not (folder / OLD_CONFIG_FILE).exists():
            # without a swap peft, which knows nothing of ours, finds no adapter for a moment, but never a mixture
            atomic.settle(folder)
        seen.append(what_is_there(folder))
        assert seen[-1] in allowed, f"dead at call {last}"
        mine(folder)
        if count[0] < last:
            break
    assert allowed[0] in seen and seen[-1] == allowed[1] and len(seen) > 15
    assert seen == sorted(seen), "an older save came back"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def sizes(folder):
    # safetensors writes its metadata in an order of its own each time: the bytes of two saves differ
    return {name: len(data) for name, data in contents(folder).items()}


def writers():
    yield "save", lora(16, 1.0), hfadapt.save
    yield "peft", lora(16, 1.0), functools.partial(hfadapt.export, format="peft")
    yield "adapterhub", lora(16, 1.0), functools.partial(hfadapt.export, format="adapterhub")
    multi = toy_model(toy_tasks(), method="low_rank")
    yield "multi-task", multi, lambda model, folder: model.save_pretrained(folder)
    yield "whole, of a stock model", lora(16, 1.0), lambda model, folder: model.save_pretrained(folder)


@pytest.mark.parametrize(("model", "write"), [pytest.param(*rest, id=name) for name, *rest in writers()])
def test_a_new_folder_is_whole_or_not_there(model, write, tmp_path):
    write(model, tmp_path / "whole")
    for last in range(1, 1000):
        folder = tmp_path / f"out{last}"
        with dying_at(last) as count, contextlib.suppress(Died):
            write(model, folder)
        assert not folder.exists() or sizes(folder) == sizes(tmp_path / "whole")
        if count[0] < last:
            break
    assert folder.exists() and last > 10


def test_json_files_are_the_old_or_the_new(tmp_path):
    path = tmp_path / "results.json"
    for last in range(1, 100):
        atomic.write_json(path, "old")
        assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
        with dying_at(last) as count, contextlib.suppress(Died):
            atomic.write_json(path, "new")
        assert json.loads(path.read_text()) in ("old", "new")
        if count[0] < last:
            break
    assert json.loads(path.read_text()) == "new" and last > 5


def test_a_process_that_is_really_killed_leaves_nothing_for_long(tmp_path):
    code = f"""
import os, time
from hfadapt.adapters.atomic import atomic_folder, write_whole
with atomic_folder({str(tmp_path / "out")!r}) as temporary:
    (temporary / "a").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""
    roots = os.pathsep.join(map(str, [Path(hfadapt.__file__).parents[1]]))
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": roots}
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        with atomic.atomic_folder(tmp_path / "out") as temporary:
            (temporary / "a").write_text("whole")
        assert len(list(tmp_path.iterdir())) == 2, "what another process is writing is left alone"
        process.send_signal(signal.SIGKILL)
        process.wait()
    with atomic.atomic_folder(tmp_path / "out") as temporary:
        (temporary / "a").write_text("again")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "again"


def test_saving_keeps_links_modes_and_open_files(tmp_path):
    model = lora(16, 1.0)
    folder = hfadapt.save(model, tmp_path / "real")
    folder.chmod(0o750)
    (folder / "link").symlink_to("notes.txt")
    (tmp_path / "link").symlink_to("real")
    with (folder / "notes.txt").open("w") as notes:
        hfadapt.save(model, tmp_path / "link")
        notes.write("still the same file")
    assert (tmp_path / "link").is_symlink() and (folder / "link").is_symlink()
    assert (folder / "link").read_text() == "still the same file"
    assert folder.stat().st_mode & 0o777 == 0o750


def test_saving_into_the_working_folder_does_not_pull_it_away(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for value in (1.0, 2.0):
        hfadapt.save(lora(16, value), ".")
        assert what_is_there(Path.cwd()) == (16, {value})
    assert Path(CONFIG_FILE).exists() and [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("folder", ["", " ", None, 3, "a\0b"])
def test_no_folder_is_no_working_folder(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no folder to save to"):
        hfadapt.save(lora(16, 1.0), folder)
    with pytest.raises(CheckpointError, match="no folder to save to"):
        toy_model(toy_tasks()).save_pretrained(folder)
    assert not list(tmp_path.iterdir())


def foreign_folders():
    model = tiny_model("bert")
    yield "a base", lambda folder: model.save_pretrained(folder)
    yield "an adapted model, by Trainer", lambda folder: lora(16, 1.0).save_pretrained(folder)
    yield "weights alone", lambda folder: (folder / "pytorch_model.bin").write_bytes(b"x")
    yield "a config alone", lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}')
    yield "an adapter of peft's", lambda folder: (folder / OLD_CONFIG_FILE).write_text('{"peft_type": "LORA"}')
    yield "an adapter of AdapterHub's", lambda folder: (folder / OLD_CONFIG_FILE).write_text('{"config": {}}')
    yield "adapter weights alone", lambda folder: (folder / WEIGHTS_FILE).write_bytes(b"x")


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in foreign_folders()])
def test_what_others_saved_is_never_replaced(make, tmp_path):
    folder = tmp_path / "theirs"
    folder.mkdir()
    make(folder)
    before = contents(folder)
    for write in (lambda: hfadapt.save(lora(16, 1.0), folder), lambda: toy_model(toy_tasks()).save_pretrained(folder)):
        with pytest.raises(CheckpointError, match=r"that hfadapt did not write"):
            write()
    assert contents(folder) == before


def test_a_twin_of_older_weights_goes_with_them(tmp_path):
    model = toy_model(toy_tasks(), method="low_rank")
    model.save_pretrained(tmp_path)
    hfadapt.save(model.base, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {CONFIG_FILE, WEIGHTS_FILE, "config.json"}


def checkpoint_of_trainer(folder, model, number):
    """Write what ``Trainer`` writes, in its order, each file with ``number`` in it."""
    model.save_pretrained(folder)
    for name in ("optimizer.pt", "scheduler.pt", "trainer_state.json"):
        with open(folder / name, "w") as file:
            file.write(json.dumps({"global_step": 4, "number": number}))


@pytest.mark.parametrize("kind", ["multi-task", "stock"])
def test_the_last_checkpoint_is_of_one_run(kind, tmp_path):
    models = [toy_model(toy_tasks(), method="low_rank") if kind == "multi-task" else lora(16, 0.0) for _ in range(2)]
    for value, model in enumerate(models):
        set_all(model, float(value))
    folder = tmp_path / "checkpoint-4"
    for last in range(1, 1000):
        checkpoint_of_trainer(folder, models[0], 0)
        time.sleep(0.002)
        with dying_at(last) as count, contextlib.suppress(Died):
            checkpoint_of_trainer(folder, models[1], 1)
        if last_checkpoint(tmp_path) is not None:
            tensors = load_file(folder / "model.safetensors")
            ours = {
                float(t.flatten()[0]) for key, t in tensors.items() if ".hfadapt." in key or key.startswith("heads.")
            }
            numbers = {json.loads((folder / f).read_text())["number"] for f in ("optimizer.pt", "trainer_state.json")}
            assert ours == numbers, f"dead at call {last}"
        if count[0] < last:
            break
    assert last_checkpoint(tmp_path) is not None and numbers == {1}
