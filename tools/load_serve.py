"""Load a server of `hfadapt serve` on this machine, and compare every answer with that of the same row alone.

Usage: python tools/load_serve.py [--seconds 60] [--clients 100] [--kill] [--out FOLDER]

Many clients ask a server in a process of its own for texts of mixed tasks. All the while a task is added, replaced and
removed over HTTP, clients stop reading, and another sends what is malformed or too large. With --kill the server is
killed half way and started again; what clients sent meanwhile, they send once more. The base is tiny and random, with
the adapters of two methods: what is loaded is the server, not the matrix product.

Printed, and with --out written: requests and texts, wrong answers, requests that were lost without an error, seconds at
the median and the 99th percentile, and the server's resident memory along the way, with how much it grew from the
second quarter of each life of the server to its last. Exit status 1 where an answer is wrong, a request was lost, the
memory grew by more than a tenth, or the server did not end well when it was told to.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import random
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import torch

from hfadapt import Classification, Engine, LoRA, MultiTaskModel, Regression, Span, Task, TokenClassification
from hfadapt.errors.version import __version__
from hfadapt.inference.predict import to_dict
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer

TASKS = [
    *(Task(f"topic{number}", Classification(3)) for number in range(4)),
    Task("score", Regression(0, 5)),
    Task("tags", TokenClassification(3)),
    Task("span", Span()),
]
GUEST = "guest"
ROWS = 120
LOOKS = 60  # at the memory
MAY_GROW = 0.10
TOKEN = secrets.token_urlsafe()


def save(base: Path, folder: Path, tasks: list[Task], method: Any, seed: int) -> None:
    """Save tasks whose adapters and heads do something."""
    model = MultiTaskModel.from_pretrained(str(base), tasks=tasks, method=method)
    torch.manual_seed(seed)
    randomize(model.base)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)


def rows_alone(root: Path) -> list[tuple[tuple[str, str, str | None], Any]]:
    """Return rows of all tasks and lengths, each with what an engine answers that is asked nothing else."""
    engine = Engine.from_pretrained([root / "many", root / GUEST])
    chosen, found = random.Random(0), []
    for number in range(ROWS):
        task = [*(task.name for task in TASKS), GUEST][number % (len(TASKS) + 1)]
        text, pair = (" ".join(f"w{chosen.randrange(1, 80)}" for _ in range(chosen.randrange(1, 25))) for _ in "ab")
        row = (text, task, pair if task == "span" else None)
        answer = to_dict(engine.predict([text], [task], [row[2]])[0])
        said = {key: value for key, value in answer.items() if key not in ("text", "text_pair")}
        found.append((row, json.loads(json.dumps(said))))
    return found


class Server:
    """The server, in a process of its own, on a port that stays the same when it is started again.

    Args:
        root: Of the folders.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [sys.executable, "-m", "hfadapt", "serve", str(self.root / "many"), "--port", str(self.port)]
        environment = {**os.environ, "HFADAPT_SERVE_TOKEN": TOKEN}
        self.process = subprocess.Popen(
            [*command, "--root", str(self.root)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 300
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("the server did not start")

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Ask on a connection of its own; return the status, and what came as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {TOKEN}"}
        content = body if isinstance(body, bytes) or body is None else json.dumps(body)
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        except http.client.HTTPException as error:
            raise ConnectionError(str(error)) from error
        finally:
            connection.close()

    def memory(self) -> int:
        """Resident memory in KiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("ascii")
        return int(status.partition("VmRSS:")[2].split()[0])


class Load:
    """What the clients do, and what they see.

    Args:
        server: That they ask.
        rows: With their answers.
    """

    def __init__(self, server: Server, rows: list[tuple[tuple[str, str, str | None], Any]]) -> None:
        self.server, self.rows = server, rows
        self.end, self.down = threading.Event(), threading.Event()
        self.lock = threading.Lock()
        self.count: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.problems: list[str] = []

    def client(self, seed: int) -> None:
        """Ask for some rows at a time, until the end."""
        chosen = random.Random(seed)
        some: list[Any] = []
        while not self.end.is_set():
            some = some or chosen.sample(self.rows, chosen.randrange(1, 9))
            texts, tasks, pairs = zip(*(row for row, _ in some), strict=True)
            started, was_down = time.monotonic(), self.down.is_set()
            try:
                body = {"texts": texts, "tasks": tasks, "pairs": pairs}
                status, found = self.server.ask("POST", "/predict", body)
            except OSError as error:
                if was_down or self.down.is_set():
                    self.note("sent again, as the server was killed")
                    time.sleep(0.2)
                else:
                    self.note("lost", f"{type(error).__name__}: {error}")
                    some = []
                continue
            self.see(status, found, [task for task in tasks], [answer for _, answer in some], started)
            some = []

    def see(self, status: int, found: Any, tasks: list[str], wanted: list[Any], started: float) -> None:
        """Compare what came."""
        if status == 200:
            if found["answers"] == wanted:
                self.note("answered")
                with self.lock:
                    self.seconds.append(time.monotonic() - started)
                    self.count["texts"] += len(wanted)
            else:
                self.note("wrong", f"{found['answers']} and not {wanted}")
        elif status == 429:
            self.note("told to come back later")
            time.sleep(0.5)
        elif GUEST in tasks and status == 422 and GUEST in found["error"]["what"]:
            self.note("asked a task that was gone, and told so")
        else:
            self.note("wrong", f"status {status}: {found}")

    def changes(self) -> None:
        """Add, replace and remove a task."""
        steps = (("POST", "/tasks", {"folder": GUEST}), ("PUT", f"/tasks/{GUEST}", {"folder": GUEST}))
        while not self.end.is_set():
            for method, path, body in (*steps, ("DELETE", f"/tasks/{GUEST}", None)):
                try:
                    status, found = self.server.ask(method, path, body)
                except OSError as error:
                    if not self.down.is_set():
                        self.note("lost", f"{method} {path}: {error}")
                    time.sleep(0.2)
                    break
                if status in (200, 201):
                    self.note("changes of tasks")
                elif not self.down.is_set():
                    self.note("wrong", f"{method} {path}: {status}: {found}")
                time.sleep(0.2)

    def nuisance(self) -> None:
        """Send what is malformed or too large; and ask for much on connections that nobody reads."""
        bad = (b"{", b"[" * 100_000, b'{"texts": [3], "tasks": "score"}', b" " * (5 << 20), b'{"texts": ["\\ud800"]}')
        asked = json.dumps({"texts": ["w1 w2"] * 256, "tasks": "topic0"}).encode()
        head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(asked)}"
        page = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n"
        while not self.end.is_set():
            try:
                # Pages are cheap: what is tried is who reads them, and not the engine.
                with self.deaf(head.encode() + b"\r\n\r\n" + asked + page * 300):
                    for content in bad:
                        status, found = self.server.ask("POST", "/predict", content)
                        right = 400 <= status < 500 and len(found["error"]) == 6
                        self.note("refused" if right else "wrong", "" if right else f"{content[:20]!r}: {status}")
                        time.sleep(0.2)
            except OSError:
                # A body that is too large may be refused while it is still being sent.
                time.sleep(0.2)

    @contextlib.contextmanager
    def deaf(self, request: bytes) -> Iterator[None]:
        """A connection that asks and reads nothing."""
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.settimeout(2)
            connection.connect(("127.0.0.1", self.server.port))
            with contextlib.suppress(TimeoutError):  # the server takes no more of who does not read
                connection.sendall(request)
            yield

    def note(self, what: str, problem: str = "") -> None:
        """Count what happened."""
        with self.lock:
            self.count[what] += 1
            if problem:
                self.problems.append(f"{what}: {problem}"[:500])

    def run(self, seconds: float, clients: int, kill: bool) -> list[list[int]]:
        """Let them ask for so long; return the memory along the way, a list for each life of the server."""
        threads = [threading.Thread(target=self.client, args=(seed,)) for seed in range(clients)]
        threads += [threading.Thread(target=self.changes), threading.Thread(target=self.nuisance)]
        for thread in threads:
            thread.start()
        memory: list[list[int]] = [[]]
        for look in range(LOOKS):
            time.sleep(seconds / LOOKS)
            memory[-1].append(self.server.memory())
            if kill and look == LOOKS // 2 - 1:
                memory.append([])
                self.down.set()
                self.note("kills")
                self.server.process.kill()
                self.server.process.wait()
                self.server.start()
                time.sleep(1)  # for requests that were under way when it died
                self.down.clear()
        self.end.set()
        for thread in threads:
            thread.join(330)
        return memory


def growth(memory: list[int]) -> float:
    """By which part the memory of the last quarter of a life is above that of the second."""
    quarter = max(1, len(memory) // 4)
    second, last = memory[quarter : 2 * quarter] or memory, memory[-quarter:]
    return sum(last) / len(last) / (sum(second) / len(second)) - 1


def main() -> None:
    """Read the options, load the server, and report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--kill", action="store_true", help="kill the server half way, and start it again")
    parser.add_argument("--out", type=Path, help="folder of load.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        base, root = Path(place, "base"), Path(place, "root")
        torch.manual_seed(0)
        tiny_model("bert").save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        save(base, root / "many", TASKS, LoRA(r=4), 1)
        save(base, root / GUEST, [Task(GUEST, Classification(2))], "par_bn", 2)
        server = Server(root)
        load = Load(server, rows_alone(root))
        server.start()
        try:
            memory = load.run(options.seconds, options.clients, options.kill)
            with load.deaf(b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"):
                server.process.terminate()
                ended = server.process.wait(60)
        finally:
            server.process.kill()
    for life in memory:
        if growth(life) > MAY_GROW:
            load.note("memory grew", f"by {growth(life):.0%}: {life}")
    if ended not in (0, -signal.SIGTERM):  # uvicorn raises the signal again once everything is answered
        load.note("wrong", f"told to stop, the server ended with exit status {ended}")
    seconds = sorted(load.seconds) or [float("nan")]
    report = {
        "seconds": options.seconds,
        "clients": options.clients,
        "counts": dict(load.count),
        "p50_seconds": round(seconds[len(seconds) // 2], 4),
        "p99_seconds": round(seconds[len(seconds) * 99 // 100], 4),
        "server_memory_kib": memory,
        "memory_grew_by": [round(growth(life), 4) for life in memory],
        "exit_status": ended,
        "problems": load.problems[:10],
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "versions": {"hfadapt": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "date": date.today().isoformat(),
    }
    text = json.dumps(report, indent=2) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "load.json").write_text(text, encoding="utf-8")
    sys.exit(bool(load.problems))


if __name__ == "__main__":
    main()
