"""The commands of docs/serve.md do what the page says, in the folders that its Python blocks make."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.docs.project import ROOT

TEXT = (ROOT / "docs" / "serve.md").read_text("utf-8")
PATHS = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), str(ROOT / "plugins"), os.environ.get("PYTHONPATH", "")])


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


def commands(begin: str) -> list[list[str]]:
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith(begin)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the page's Python blocks ran."""
    here = tmp_path_factory.mktemp("page")
    module = types.ModuleType("serve_page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        for block in blocks("python"):
            exec(compile(block, "docs/serve.md", "exec"), vars(module))
    return here


def start(command: list[str], folder: Path, **environment: str) -> subprocess.Popen[str]:
    assert command[0] == "hfadapt"
    return subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": PATHS, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_command_scores_a_parquet_file_with_five_tasks(folder: Path) -> None:
    command = next(line for line in commands("hfadapt predict") if "--ray" not in line)
    place = command.index("--output") + 1
    written, command[place] = folder / command[place], "by-command"
    said, error = start(command, folder).communicate(timeout=300)
    assert "100 rows in 1 parts" in said, error
    import pyarrow.parquet as pq

    found = pq.read_table(next((folder / "by-command").glob("*.parquet"))).to_pylist()
    want = [row for path in sorted(written.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert found == want and len(found) == 100


@pytest.fixture(scope="module")
def port(folder: Path):
    """The server of the page's first command, on a free port."""
    pytest.importorskip("uvicorn", reason="the extra serve is not installed")
    command = commands("hfadapt serve")[0]
    with socket.create_server(("127.0.0.1", 0)) as free:
        number = free.getsockname()[1]
    command[command.index("--port") + 1] = str(number)
    server = start(command, folder)
    try:
        until = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{number}/health", timeout=10).close()
                break
            except (urllib.error.URLError, ConnectionError):
                assert server.poll() is None and time.monotonic() < until, server.stderr.read()
                time.sleep(0.2)
        yield number
        server.terminate()
        # uvicorn raises the signal again once everything is answered
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.communicate()


def asked(port: int, path: str, body: str) -> tuple[int, dict]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}{path}", body.encode(), {"Content-Type": "application/json"}, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def shown(begin: str) -> dict:
    (text,) = [block for block in blocks("text") if block.startswith(begin)]
    return json.loads(text.replace("\n", ""))


def keys(value: object) -> object:
    """What a value is made of: names of keys, and kinds in their places."""
    if isinstance(value, dict):
        return {key: keys(one) for key, one in value.items()}
    return [keys(one) for one in value] if isinstance(value, list) else type(value).__name__


def test_the_eight_tasks_answer_over_http_as_the_page_shows(port: int) -> None:
    (line,) = commands("curl -s localhost:8000/predict")
    body = line[line.index("-d") + 1]
    status, found = asked(port, "/predict", body)
    want = shown('{"answers"')
    assert status == 200 and keys(found) == keys(want)
    assert [one["task"] for one in found["answers"]] == json.loads(body)["tasks"]
    status, found = asked(port, "/predict", body.replace("topic0", "topc"))
    assert status == 422 and found == shown('{"error"')
