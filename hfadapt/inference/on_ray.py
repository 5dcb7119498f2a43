"""Whole files answered on many machines: workers of a Ray cluster answer, and this process reads and writes.

A part's rows go to a worker that is free, and come back as the bytes of its file of answers, which is written here. So
the files need not be where the workers are, a worker that dies takes no more with it than the part that it has, and no
part can be written by two. Which parts there are, and which are done, is said by ``hfadapt/inference/bulk.py``.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError, HFAdaptError
from ..errors.limits import require_number
from .bulk import Bulk, Done, Part, answered, open_run, parts_of, tasks_of
from .folders import digest_of
from .tables import encoded, write_encoded

__all__ = ["answer_files_on_ray"]

logger = logging.getLogger(__name__)

_STARTS_A_CLUSTER = (None, "", "local")
_HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^\[\]/]+)\]?:(?P<port>\d+)")
# Seconds. Ray itself goes on trying an address at which nobody listens for minutes.
_ANSWERS_WITHIN = 10.0


def answer_files_on_ray(
    bulk: Bulk, address: str | None = None, workers: int = 1, *, tries: int = 3, patience: float = 600.0
) -> Done:
    """Answer every row of the files by every task, on the machines of a Ray cluster.

    The answers are those of ``answer_files``, in the same files, and a run that was begun by one is gone on with by
    the other. Workers have as many threads as this process, and take as many CPUs of the cluster.

    Args:
        bulk: What is answered, and where the answers go. Every machine must have its folder of adapters, and their
            base, under the same names; the files of rows and of answers are this machine's.
        address: Of the cluster: ``"auto"`` for one that runs on this machine, ``"HOST:PORT"``, ``"ray://HOST:PORT"``;
            one is started here for this run where none is given. Where Ray is at work in this process already, its
            cluster is used, whatever the address.
        workers: Processes on the cluster, each with an engine of its own.
        tries: How often a part is given to a worker that dies of it, or fails, before the run ends.
        patience: Seconds to wait for the first worker.

    Raises:
        ConfigError: Ray is not installed, or the cluster cannot be reached.
        DataError: as of ``answer_files``; a machine has other adapters; a part failed on every try; no worker came.
            What is written stays, and the next run goes on behind it.
    """
    require_number("workers", workers, where="answer_files_on_ray", whole=True, least=1)
    require_number("tries", tries, where="answer_files_on_ray", whole=True, least=1)
    ray = _ray()
    adapters = open_run(bulk)
    import torch

    threads = torch.get_num_threads()
    with _cluster(ray, address, workers * threads):
        crew = _Crew(ray, bulk, adapters, threads, tries)
        try:
            return crew.work(workers, patience)
        finally:
            crew.dismiss()


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"answering on a cluster needs {error.name}, which is not installed",
            where="answer_files_on_ray",
            got=f"no package {error.name}",
            allowed="Ray 2.50 or newer",
            try_="pip install 'hfadapt[ray]', or workers=N without Ray, which are processes of this machine",
        ) from error


@contextmanager
def _cluster(ray: Any, address: str | None, cpus: int) -> Iterator[None]:
    """Join a cluster, or start one, and leave it in the end; one that this process is in already is not left."""
    if ray.is_initialized():
        yield
        return
    try:
        if address in _STARTS_A_CLUSTER:
            # What runs on this machine alone tells nobody about it, unless somebody asked for that.
            os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
            ray.init(
                address="local",
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=False,
                logging_level=logging.ERROR,
            )
        else:
            _require_listener(str(address))
            ray.init(address=address, logging_level=logging.ERROR)
    except (OSError, OverflowError, RuntimeError, ValueError, AssertionError, ray.exceptions.RayError) as error:
        raise ConfigError(
            "the cluster cannot be reached",
            where="answer_files_on_ray",
            got=f"address {address!r}: {type(error).__name__}: {str(error).strip()[:300]}",
            allowed="'auto', HOST:PORT or ray://HOST:PORT of a cluster that runs; none starts one on this machine",
            try_="ray status --address HOST:PORT, which asks the cluster itself; without an address this machine alone",
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Raise OSError where nobody listens at ``HOST:PORT``; Ray finds out about other forms at once."""
    found = _HOST_AND_PORT.fullmatch(address)
    if found is not None:
        socket.create_connection((found["host"], int(found["port"])), timeout=_ANSWERS_WITHIN).close()


class Worker:
    """What stands on a machine of the cluster: an engine that is loaded once.

    Errors of ours are returned and not raised: they would be the same on every try.

    Args:
        bulk: What is answered.
        adapters: The digest of its folder where the run was begun.
        threads: To compute with.
    """

    def __init__(self, bulk: Bulk, adapters: str, threads: int) -> None:
        self.bulk, self.adapters, self.threads = bulk, adapters, threads

    def open(self) -> dict[str, bool] | HFAdaptError:
        """Load the engine; return the tasks, and whether each reads pairs."""
        import torch

        from .engine import Engine

        # The bits of a product may follow from how many threads share it.
        torch.set_num_threads(self.threads)
        try:
            self._require_same_adapters()
            self.engine = Engine.from_pretrained(self.bulk.folder, base=self.bulk.base)
            self._require_same_adapters()  # a folder that was written while it was read
            self.tasks = tasks_of(self.bulk, self.engine)
        except HFAdaptError as error:
            return _told(error)
        return self.tasks

    def answer(self, part: Part) -> bytes | HFAdaptError:
        """Return the bytes of the file of answers."""
        try:
            return encoded(self.bulk.format, answered(self.bulk, self.engine, self.tasks, part))
        except HFAdaptError as error:
            return _told(error)

    def _require_same_adapters(self) -> None:
        found = digest_of(self.bulk.folder)
        if found != self.adapters:
            raise DataError(
                "a machine of the cluster has other adapters than the one that began the run",
                where=f"{self.bulk.folder} on {platform.node()}",
                got=f"sha256 {found} of its files" if Path(self.bulk.folder).is_dir() else "no such folder",
                allowed=f"sha256 {self.adapters}",
                try_="copy the folder to every machine under the same name, or to a disk that all of them see",
            )


def _told(error: HFAdaptError) -> HFAdaptError:
    """The same error, of words alone: what was given in another process cannot always be sent."""
    got, allowed = (None if one is None else str(one) for one in (error.got, error.allowed))
    return type(error)(error.what, where=str(error.where), got=got, allowed=allowed, try_=error.try_)


@dataclass
class _Job:
    """What a worker was asked for: a part, or to open where there is none."""

    worker: Any
    part: Part | None = None
    tried: int = 0


class _Crew:
    """The workers, and what each is busy with: one part at a time, so that it is known which one a death belongs to."""

    def __init__(self, ray: Any, bulk: Bulk, adapters: str, threads: int, tries: int) -> None:
        self.ray, self.bulk, self.tries = ray, bulk, tries
        # A machine's worker does not stand in the folder that this process stands in.
        there = {"folder": bulk.folder, **({"base": bulk.base} if bulk.base else {})}
        there = {key: os.path.abspath(name) for key, name in there.items() if os.path.exists(name)}
        self.told = (replace(bulk, **there), adapters, threads)
        self.kind = ray.remote(Worker).options(num_cpus=threads, max_restarts=0, scheduling_strategy="SPREAD")
        self.busy: dict[Any, _Job] = {}
        self.idle: list[Any] = []
        self.again: list[_Job] = []
        self.parts: Iterator[Part] | None = None
        self.more = True
        self.stillborn = 0
        self.written = self.rows = self.before = 0

    def work(self, workers: int, patience: float) -> Done:
        """Have every part answered."""
        for _ in range(workers):
            self._start()
        while self._next_is_due():
            at_work = any(job.part for job in self.busy.values())
            ready, _ = self.ray.wait(list(self.busy), num_returns=1, timeout=None if at_work else patience)
            if not ready:
                raise DataError(
                    "no worker of the cluster could start",
                    where=self.bulk.output,
                    got=f"none in {patience:g} s, and a cluster of {self._resources()}",
                    allowed=f"a machine with {self.told[2]} CPUs free",
                    try_="ray status, which says what is in use; or OMP_NUM_THREADS=1, and each worker takes one CPU",
                )
            self._see(self.busy.pop(ready[0]), ready[0])
        return Done(self.written, self.rows, self.before)

    def dismiss(self) -> None:
        """End the workers, whatever they are at."""
        for worker in [*self.idle, *(job.worker for job in self.busy.values())]:
            with suppress(self.ray.exceptions.RayError, OSError, RuntimeError):  # of a cluster that is gone
                self.ray.kill(worker)
        self.idle, self.busy = [], {}

    def _start(self) -> None:
        worker = self.kind.remote(*self.told)
        self.busy[worker.open.remote()] = _Job(worker)

    def _next_is_due(self) -> bool:
        """Hand out what can be; say whether anything is left to wait for."""
        while self.idle and (job := self._next()) is not None:
            job.worker = self.idle.pop()
            self.busy[job.worker.answer.remote(job.part)] = job
        # Workers that still open are waited for only while there is something for them to do.
        return self.more or bool(self.again) or any(job.part for job in self.busy.values())

    def _next(self) -> _Job | None:
        if self.again:
            return self.again.pop(0)
        for part in self.parts or ():
            if not part.target.exists():
                return _Job(None, part)
            self.before += 1
        self.more = False
        return None

    def _see(self, job: _Job, ref: Any) -> None:
        """Take what a worker gave, or that it gave nothing."""
        try:
            found = self.ray.get(ref)
        except self.ray.exceptions.RayError as error:
            if job.part and isinstance(error, self.ray.exceptions.RayTaskError):
                self.idle.append(job.worker)  # which goes on behind an error
            else:
                self.ray.kill(job.worker)  # it may only be out of reach, and is not to come back
            self._failed(job, error)
            if not self.idle:
                self._start()
            return
        self.idle.append(job.worker)
        if isinstance(found, HFAdaptError):
            raise found
        if job.part is None:
            self.stillborn = 0
            self.parts = self.parts or parts_of(self.bulk, found)
            return
        write_encoded(job.part.target, found)
        self.written, self.rows = self.written + 1, self.rows + len(job.part.rows)
        logger.info("%s: %d rows", job.part.target.name, len(job.part.rows))

    def _failed(self, job: _Job, error: Exception) -> None:
        """Have a part done by another worker, if it was not tried too often."""
        last = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        part = job.part
        if part is None:
            self.stillborn += 1
        else:
            job.tried += 1
            self.again.append(job)
        tried = job.tried or self.stillborn
        logger.warning("%s: try %d: %s", part.target.name if part else "a worker", tried, last)
        if tried < self.tries:
            return
        raise DataError(
            "workers die, or fail, before they have loaded the tasks" if part is None else "a part failed on every try",
            where=self.bulk.output if part is None else f"{part.path}, {len(part.rows)} rows from row {part.first} on",
            got=f"{tried} tries; the last: {type(error).__name__}: {last}"[:500],
            allowed="answers",
            try_="a smaller rows_per_part, where memory ran out; run the same again, and what is written stays",
        ) from error

    def _resources(self) -> str:
        return ", ".join(f"{count:g} {name}" for name, count in self.ray.cluster_resources().items() if name == "CPU")
