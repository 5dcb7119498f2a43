"""Whole files answered on a cluster of Ray's: the bytes of the local form, whatever happens to a worker on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hfadapt import MultiTaskModel
from hfadapt.errors import ConfigError, DataError
from hfadapt.inference import bulk as bulk_module
from hfadapt.inference import on_ray
from hfadapt.inference.bulk import Bulk, Done, answer_files
from hfadapt.inference.on_ray import Worker, answer_files_on_ray
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import every_toy_task, tiny_tokenizer

ROOT = Path(__file__).parents[2]
NAMES = ("topic", "score", "same", "tags", "labels")
ROWS = [{"text": f"w{i} w{i + 1}" + " w3" * (i % 7), "text_pair": f"w{i + 2}"} for i in range(43)]
# Nothing is told to anybody, and workers are not put behind all else that the machine is at.
ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
NEEDS = "the extra ray is not installed: make ray"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    here = tmp_path_factory.mktemp("ray")
    tiny_model("bert").save_pretrained(here / "base")
    tiny_tokenizer().save_pretrained(here / "base")
    model = MultiTaskModel.from_pretrained(str(here / "base"), tasks=every_toy_task(), method="lora")
    model.save_pretrained(here / "a")
    (here / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    return here / "a"


@pytest.fixture(scope="module")
def local(folder, tmp_path_factory):
    """What the local form writes, by the name of the file."""
    here = tmp_path_factory.mktemp("local")
    assert answer_files(of(folder, here)) == Done(parts=9, rows=43)
    return read(here)


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two CPUs on this machine, which tells nobody about itself."""
    ray = pytest.importorskip("ray", reason=NEEDS)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        yield ray
        ray.shutdown()


def of(folder, tmp_path, **options):
    options = {"tasks": NAMES, "rows_per_part": 5, **options}
    return Bulk(str(folder), str(folder.parent / "rows.jsonl"), str(tmp_path / "out"), **options)


def read(tmp_path):
    return {path.name: path.read_bytes() for path in sorted((tmp_path / "out").glob("answers-*"))}


def left_over(tmp_path):
    return [path.name for path in (tmp_path / "out").iterdir() if path.name.startswith(".")]


def test_the_answers_are_those_of_the_local_form_byte_for_byte(folder, local, cluster, tmp_path):
    done = answer_files_on_ray(of(folder, tmp_path), workers=2)
    assert done == Done(parts=9, rows=43) and read(tmp_path) == local and not left_over(tmp_path)
    assert cluster.is_initialized(), "a cluster that was there before is left as it was"
    assert answer_files_on_ray(of(folder, tmp_path), workers=2) == Done(before=9)


def test_parquet_is_the_same_too(folder, cluster, tmp_path):
    for place, answer in (("here", answer_files), ("there", answer_files_on_ray)):
        assert answer(of(folder, tmp_path / place, format="parquet", rows_per_part=20)).rows == 43
    assert read(tmp_path / "here") == read(tmp_path / "there")


def test_a_run_is_gone_on_with_by_the_other_form(folder, local, cluster, tmp_path):
    job = of(folder, tmp_path)
    answer_files(job)
    for number in (1, 4, 8):
        job.part(0, number).unlink()
    assert answer_files_on_ray(job, workers=2) == Done(parts=3, rows=13, before=6)
    assert read(tmp_path) == local


def killed_at(place, part, times):
    """A worker whose process is killed when it has the answers of a part, and before it has given them back."""

    class Killed(Worker):
        def open(self):
            (Path(place) / f"open-{os.getpid()}").touch()
            return super().open()

        def answer(self, one):
            found = super().answer(one)
            (Path(place) / f"answer-{one.first}-{os.getpid()}").touch()
            if one.first == part and len(list(Path(place).glob(f"answer-{part}-*"))) <= times:
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    return Killed


def test_a_worker_that_is_killed_loses_nothing_and_doubles_nothing(folder, local, cluster, tmp_path, monkeypatch):
    """Two workers; one is killed at the third part. The part is done by another, which is loaded in its place."""
    seen = tmp_path / "seen"
    seen.mkdir()
    monkeypatch.setattr(on_ray, "Worker", killed_at(seen, 10, times=1))
    assert answer_files_on_ray(of(folder, tmp_path), workers=2) == Done(parts=9, rows=43)
    assert read(tmp_path) == local and not left_over(tmp_path)
    asked = sorted(path.name.split("-")[1] for path in seen.glob("answer-*"))
    assert sorted({*asked}) == sorted(str(first) for first in range(0, 43, 5))
    assert len(asked) == 10, "of all parts, the one of the killed worker alone was asked for again"
    assert len(list(seen.glob("open-*"))) <= 3, "an engine is loaded once a worker"


def test_a_part_that_kills_every_worker_ends_the_run_by_name_and_the_next_run_goes_on(
    folder, local, cluster, tmp_path, monkeypatch
):
    seen = tmp_path / "seen"
    seen.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "Worker", killed_at(seen, 10, times=2))
        with pytest.raises(DataError, match=r"rows.jsonl, 5 rows from row 10 on: a part failed on every try.*2 tries"):
            answer_files_on_ray(of(folder, tmp_path), workers=2, tries=2)
    written = len(read(tmp_path))
    assert 2 <= written < 9 and not left_over(tmp_path)
    done = answer_files_on_ray(of(folder, tmp_path), workers=2)
    assert (done.parts, done.before) == (9 - written, written)
    assert read(tmp_path) == local


def test_an_error_in_a_worker_is_tried_again_and_told(folder, local, cluster, tmp_path, monkeypatch):
    place = str(tmp_path)

    class Failing(Worker):
        def answer(self, one):
            tried = Path(place, "tried")
            if one.first == 5 and not tried.exists():
                tried.touch()
                raise MemoryError("no room for this part")
            return super().answer(one)

    class Broken(Worker):
        def open(self):
            raise RuntimeError("this machine is broken")

    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "Worker", Broken)
        with pytest.raises(DataError, match=r"before they have loaded the tasks.*2 tries.*this machine is broken"):
            answer_files_on_ray(of(folder, tmp_path), tries=2)
        patch.setattr(on_ray, "Worker", Failing)
        with pytest.raises(DataError, match=r"row 5 on: a part failed.*no room for this part"):
            answer_files_on_ray(of(folder, tmp_path), workers=1, tries=1)
        (tmp_path / "tried").unlink()
        answer_files_on_ray(of(folder, tmp_path), workers=1)
    assert read(tmp_path) == local


def test_what_is_wrong_with_rows_tasks_and_adapters_is_told_as_in_the_local_form(
    folder, cluster, tmp_path, monkeypatch
):
    with pytest.raises(DataError, match="no task 'topc'[\\s\\S]*topic"):
        answer_files_on_ray(of(folder, tmp_path / "a", tasks="topc"))
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "w1"}\n{"text": 3}\n')
    with pytest.raises(DataError, match="row 1, column 'text': not a text"):
        answer_files_on_ray(Bulk(str(folder), str(bad), str(tmp_path / "b"), tasks=("topic",)))
    # Stands for a machine whose folder of that name holds something else.
    monkeypatch.setattr(bulk_module, "digest_of", lambda folder: "0123")
    with pytest.raises(DataError, match=r"a machine of the cluster has other adapters.*sha256 0123"):
        answer_files_on_ray(of(folder, tmp_path / "c"))


def test_a_cluster_without_room_is_told_about(folder, cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 99)
    with pytest.raises(DataError, match=r"no worker of the cluster could start.*none in 1 s.*2 CPU.*99 CPUs free"):
        answer_files_on_ray(of(folder, tmp_path), patience=1)


def test_without_ray_the_error_says_how_to_get_it(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"needs ray, which is not installed.*hfadapt\[ray\]"):
        answer_files_on_ray(of(folder, tmp_path))
    assert not (tmp_path / "out").exists()


def environment():
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **ENVIRONMENT}


def predict(folder, tmp_path, *more):
    line = [sys.executable, "-m", "hfadapt", "predict", str(folder), "--output", str(tmp_path / "out"), "--json"]
    line += ["--input", str(folder.parent / "rows.jsonl"), "--tasks", ",".join(NAMES), "--rows-per-part", "5", *more]
    return subprocess.run(line, env=environment(), cwd=tmp_path, capture_output=True, text=True, timeout=300)


def test_the_command_starts_a_cluster_of_its_own(folder, local, tmp_path):
    pytest.importorskip("ray", reason=NEEDS)
    done = predict(folder, tmp_path, "--workers", "2", "--ray")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"parts": 9, "rows": 43, "parts_before": 0}
    assert read(tmp_path) == local


def test_the_command_joins_the_cluster_that_is_here(folder, local, cluster, tmp_path):
    done = predict(folder, tmp_path, "--ray", "auto")
    assert done.returncode == 0, done.stderr
    assert read(tmp_path) == local


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1"])
def test_a_cluster_that_is_not_there_is_told_about_by_its_address(folder, tmp_path, address):
    ray = pytest.importorskip("ray", reason=NEEDS)
    if ray.is_initialized():
        ray.shutdown()  # that of the tests above, which would be used whatever the address
    with pytest.raises(ConfigError, match="the cluster cannot be reached.*" + address):
        answer_files_on_ray(of(folder, tmp_path), address)
    assert not list((tmp_path / "out").glob("answers-*"))
