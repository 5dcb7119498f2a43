"""Libraries that need other packages than hfadapt, each in a process of its own that takes turns with this one."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ...errors import HFAdaptError
from .progress import say

__all__ = ["PACKAGES", "Rivals", "make_environment"]

#: What an environment gets; adapters has not kept up with transformers, and says which release it needs.
PACKAGES = ("torch", "adapters", "openvino", "nncf")
_PROGRAM = Path(__file__).with_name("rival_program.py")


def make_environment(folder: Path) -> None:
    """Make a virtual environment with the rivals in it, unless it is there.

    Raises:
        HFAdaptError: it cannot be made, or pip installs none of it.
    """
    import venv

    if _python(folder).is_file():
        return
    venv.create(folder, with_pip=True)
    command = [str(_python(folder)), "-m", "pip", "install", "--quiet", *PACKAGES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise HFAdaptError(
            "pip could not install the rivals",
            where=str(folder),
            got=done.stderr.strip()[-300:],
            allowed=", ".join(PACKAGES),
            try_="--adapters-env FOLDER, an environment that has them; or no such option, and those cells stay empty",
        )


def _python(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


class Rivals:
    """Processes of rivals, each started by the first case that needs it.

    Args:
        folder: Their virtual environment; without one they are not measured.
        threads: Of torch and of OpenVINO.
        patience: Seconds that one may take to be built, and for a turn.
    """

    def __init__(self, folder: Path | None, threads: int, patience: float = 600.0) -> None:
        self.folder = folder
        self.threads = threads
        self.patience = patience
        self.versions: dict[str, str] = {}
        self._running: list[subprocess.Popen[str]] = []

    def call(self, what: str, **sizes: Any) -> Any:
        """Return a call that runs a rival once and returns its seconds, or why it is not measured.

        Args:
            what: One of the functions of ``rival_program.py``.
            sizes: Its arguments.
        """
        ask = self.ask(what, **sizes)
        return ask if isinstance(ask, str) else lambda: float(ask()["seconds"])

    def ask(self, what: str, **sizes: Any) -> Callable[[], dict[str, Any]] | str:
        """As `call`, but the call returns all that the rival tells of its turn."""
        if self.folder is None:
            return "not measured: no --adapters-env"
        if not _python(self.folder).is_file():
            return f"not measured: no environment at {self.folder}"
        say(f"{what}: building it in {self.folder}")
        process = subprocess.Popen(
            [str(_python(self.folder)), str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        )
        self._running.append(process)
        told = _ask(process, {"what": what, "threads": self.threads, **sizes}, self.patience)
        if "error" in told:
            return f"not measured: {told['error']}"
        self.versions |= told["versions"]

        def run() -> dict[str, Any]:
            answer = _ask(process, {}, self.patience)
            if "error" in answer:
                raise HFAdaptError(
                    "a rival stopped", where=what, got=answer["error"], allowed="seconds", try_="--cases without it"
                )
            return answer

        return run

    def close(self) -> None:
        """End the processes."""
        for process in self._running:
            assert process.stdin is not None and process.stdout is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:  # a loaded machine; its answers are all there
                process.kill()
                process.wait()
            process.stdout.close()
        self._running.clear()

    @contextlib.contextmanager
    def closing(self) -> Iterator[Rivals]:
        """End the processes on every way out."""
        try:
            yield self
        finally:
            self.close()


def _ask(process: subprocess.Popen[str], question: dict[str, Any], patience: float) -> dict[str, Any]:
    assert process.stdin is not None and process.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(patience, end)
    timer.start()
    try:
        process.stdin.write(json.dumps(question) + "\n")
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError as error:
        line, said = "", str(error)
    else:
        said = f"the process ended with status {process.poll()}"
    finally:
        timer.cancel()
    if late.is_set():
        return {"error": f"no answer in {patience:g} seconds"}
    return json.loads(line) if line else {"error": f"{sys.platform}: {said}"}
