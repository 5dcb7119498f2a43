"""What a server tells Prometheus; needs the extra ``serve``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["Measured", "Metrics"]

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TEXTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


class Metrics:
    """The figures of one server, in a registry of its own.

    Args:
        waiting: Returns how many texts wait.
        tasks: Returns how many tasks there are.
        changed: Returns how many of them are refused as their folders changed.
    """

    def __init__(self, waiting: Callable[[], int], tasks: Callable[[], int], changed: Callable[[], int]) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("hfadapt_requests", "Requests answered.", ["path", "status"], registry=registry)
        self._seconds = Histogram(
            "hfadapt_request_seconds", "From request to answer.", ["path"], buckets=_SECONDS, registry=registry
        )
        self._texts = Counter("hfadapt_texts", "Texts answered.", ["task"], registry=registry)
        self._batch = Histogram("hfadapt_batch_texts", "Texts of a batch.", buckets=_TEXTS, registry=registry)
        self._engine = Histogram(
            "hfadapt_batch_seconds", "What a batch took the engine.", buckets=_SECONDS, registry=registry
        )
        for name, help_, value in (
            ("hfadapt_waiting_texts", "Texts that wait for the engine.", waiting),
            ("hfadapt_tasks", "Tasks that are served.", tasks),
            ("hfadapt_changed_tasks", "Tasks refused, as their folders changed.", changed),
        ):
            Gauge(name, help_, registry=registry).set_function(value)

    def batch(self, texts: int, seconds: float) -> None:
        """Count a batch."""
        self._batch.observe(texts)
        self._engine.observe(seconds)

    def answered(self, tasks: Iterable[str]) -> None:
        """Count texts by their tasks."""
        for task in tasks:
            self._texts.labels(task).inc()

    def request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def forget(self, task: str) -> None:
        """Drop the count of a task that is gone: names that come and go would fill the memory."""
        with contextlib.suppress(KeyError):  # it never answered
            self._texts.remove(task)

    def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self._registry)


class Measured:
    """Counts the requests of an application, by the route that they took: any other path is one path.

    Args:
        app: As of ASGI.
        metrics: That count.
    """

    def __init__(self, app: Any, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.request(path, status, time.monotonic() - started)
