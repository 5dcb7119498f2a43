"""A disk that fills up while something is written: what failed is named, the old is whole, and with room it goes on."""

from __future__ import annotations

import builtins
import contextlib
import errno
import functools
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

import hfadapt
from hfadapt.adapters import atomic
from hfadapt.adapters import files as adapter_files
from hfadapt.errors import CheckpointError, DataError, HFAdaptError
from hfadapt.errors.full_disk import FullDiskError, is_full, writing
from hfadapt.inference import tables
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import toy_model, toy_tasks

ROOT = Path(__file__).parents[2]
# what takes room on a disk: a name in a folder, and bytes in a file
CALLS = ("fsync", "ftruncate", "link", "mkdir", "rename", "replace", "symlink", "write")
SAID = r"No space left on device: [\d,]+ bytes were to be written, [\d,]+ are free"


class Short(io.FileIO):
    """A file that takes half of what is written to it, and then has no room."""

    full = staticmethod(lambda: False)

    def write(self, data):
        if self.full():
            super().write(bytes(data)[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@contextlib.contextmanager
def full_at(last: int):
    """Let call number ``last`` that takes room on the disk find none; yields a list that counts the calls."""
    count = [0]

    def full():
        count[0] += 1
        return count[0] == last

    def limited(call):
        def run(*args, **kwargs):
            if full():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return call(*args, **kwargs)

        return run

    real_open = io.open

    def opened(file, mode="r", *args, **kwargs):
        if not {*mode} & {*"wax+"}:
            return real_open(file, mode, *args, **kwargs)
        if full():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
        return written(file, mode)

    def written(file, mode):
        raw = Short(file, mode.replace("b", "").replace("t", ""))
        raw.full = full
        buffered = io.BufferedWriter(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8")

    real_made, make = os.open, limited(os.open)

    def made(path, flags, *args, **kwargs):
        return (make if flags & os.O_CREAT else real_made)(path, flags, *args, **kwargs)

    real_save = adapter_files.save_file

    def half_saved(tensors, path, *args, **kwargs):
        real_save(tensors, path, *args, **kwargs)
        if full():
            os.truncate(path, 40)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, limited(getattr(os, name)))
        patch.setattr(os, "open", made)
        patch.setattr(io, "open", opened)
        patch.setattr(builtins, "open", opened)
        patch.setattr(os, "fdopen", written)
        patch.setattr(atomic, "_exchange", limited(atomic._exchange))
        patch.setattr(adapter_files, "save_file", half_saved)
        patch.setattr("safetensors.torch.save_file", half_saved)
        yield count


def lora(value):
    torch.manual_seed(0)
    model = tiny_model("bert")
    hfadapt.attach(model, hfadapt.LoRA(r=2), "a", verify=False)
    return filled(model, value)


def filled(model, value):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "hfadapt" in name or name.startswith("heads."):
                parameter.fill_(value)
    return model


def old_and_new(kind):
    if kind == "save_pretrained":
        models = [filled(toy_model(toy_tasks(), method=hfadapt.LoRA(r=2)), value) for value in (1.0, 2.0)]
        return [model.save_pretrained for model in models]
    return [functools.partial(hfadapt.save, lora(value)) for value in (1.0, 2.0)]


def values_in(folder):
    config = adapter_files.read_config(folder)
    return {
        float(tensor.flatten()[0]) for tensor in adapter_files.read_tensors(folder, config["weights_sha256"]).values()
    }


@pytest.mark.parametrize("kind", ["save", "save_pretrained"])
def test_a_save_over_an_older_one_finds_no_room_anywhere_and_leaves_the_older_one(kind, tmp_path):
    write_old, write_new = old_and_new(kind)
    folder, failed, amounts = tmp_path / "out", 0, 0
    for last in range(1, 1000):
        write_old(folder)
        with full_at(last) as count:
            try:
                write_new(folder)
                want = {2.0}
            except CheckpointError as error:
                assert "as the disk is full; nothing was changed" in str(error) and "No space left" in str(error)
                amounts += bool(re.search(rf"(\w+\.\w+): {SAID}", str(error)))
                failed, want = failed + 1, {1.0}
        assert values_in(folder) == want, f"full at call {last}"
        assert {path.name for path in tmp_path.iterdir()} == {"out"}, f"left behind at call {last}"
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]
        if count[0] < last:
            break
    assert failed > 5 and amounts > 3 and want == {2.0}


@pytest.mark.parametrize("write", ["json", "answers"])
def test_a_file_that_finds_no_room_says_how_much_it_needed_and_leaves_the_older_one(write, tmp_path):
    path = tmp_path / "found.jsonl"
    for last in range(1, 100):
        path.write_bytes(b"old")
        with full_at(last) as count:
            try:
                if write == "json":
                    atomic.write_json(path, ["new"])
                else:
                    tables.write_part(path, [{"row": 0, "topic": "new"}])
                want = b"new"
            except (FullDiskError, DataError) as error:
                assert re.search(rf"found.jsonl: .*{SAID}.*make room", str(error)), error
                want = b"old"
        assert want in path.read_bytes() and [p.name for p in tmp_path.iterdir()] == ["found.jsonl"]
        if count[0] < last:
            break
    assert want == b"new" and last > 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full, which stands for a disk without room")
def test_what_torch_says_of_a_full_disk_is_known_by_what_led_to_it(monkeypatch):
    """torch 2.13's zip writer names neither the disk nor errno: findings/torch-save-full-disk.sh."""
    monkeypatch.setattr("hfadapt.errors.full_disk._free", lambda path: 0)
    said = "the disk is full.*4,000,000 bytes were to be written, 0 are free"
    with pytest.raises(FullDiskError, match=said), writing("/dev/full", 4_000_000):
        torch.save({"weight": torch.ones(1_000_000)}, "/dev/full")


def test_errors_of_other_libraries_are_known_by_their_words(monkeypatch):
    words = SafetensorError("I/O error: No space left on device (os error 28)")
    for error in (words, OSError(errno.EDQUOT, "quota")):
        assert is_full(error)
        with pytest.raises(FullDiskError, match="a: the disk is full.*12 bytes were to be written"), writing("a", 12):
            raise error
    torch_says = RuntimeError("basic_ios::clear: iostream error"), RuntimeError("PytorchStreamWriter failed writing 0")
    for other in (RuntimeError("a matrix"), PermissionError(errno.EACCES, "no"), *torch_says):
        with pytest.raises(type(other)), writing("a", 12):
            raise other
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=4096))
    for other in torch_says:
        with pytest.raises(FullDiskError, match="12 bytes were to be written, 4,096 are free"), writing("a", 12):
            raise other
    with pytest.raises(OSError) as found, writing("a"):
        raise OSError(errno.ENOSPC, "full")
    assert isinstance(found.value, HFAdaptError) and found.value.errno == errno.ENOSPC


@pytest.fixture(scope="module")
def may_mount(tmp_path_factory):
    """Skips where this user may not mount a disk of its own."""
    line = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", tmp_path_factory.mktemp("disk")]
    if shutil.which("unshare") is None or subprocess.run(line, capture_output=True).returncode:
        pytest.skip("no unshare, or this user may not mount in a namespace of its own")


@pytest.mark.parametrize("job", ["save", "bulk", "train"])
def test_on_a_disk_that_is_really_full(job, may_mount, tmp_path):
    (tmp_path / "disk").mkdir()
    script = [sys.executable, Path(__file__).with_name("on_a_small_disk.py"), tmp_path / "disk", job]
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        ["unshare", "--map-root-user", "--mount", *script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert len(said) > 3 and said[-1] == ""
    for one in said[:-1]:
        assert "No space left on device" in one, one
    assert any(re.search(SAID, one) for one in said)
