"""A server on a free port, and what its clients send."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager

import pytest

from hfadapt import Classification, Regression, Span, Task, TokenClassification
from hfadapt.inference.predict import Prediction

TOKEN = "0123456789abcdef"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
TASKS = [
    Task("topic", Classification(2), label_names=("low", "high")),
    Task("score", Regression(0, 5)),
    Task("tags", TokenClassification(3), label_names=("O", "B", "I")),
    Task("span", Span()),
]
TEXTS = [
    ("w1 w2 w3", "topic", None),
    ("w4 w5 w6 w7 w8", "score", None),
    ("w9 w10", "tags", None),
    ("w11 w12", "span", "w13 w14 w15 w16"),
    ("w1 w2", "topic", None),
    ("w20 w21 w22 w23", "tags", None),
]
PARTS = {"kind", "what", "where", "got", "allowed", "try"}


def need_the_extra():
    """Skip a module of tests where the extra ``serve``, or the client of the tests, is not installed."""
    for name in ("fastapi", "uvicorn", "prometheus_client", "httpx"):
        pytest.importorskip(name, reason="the extra serve")


class Slow:
    """An engine whose answers are long, and wait until they are let go."""

    def __init__(self, tasks, size=1):
        self.tasks, self.size = tasks, size
        self.busy, self.held = threading.Event(), threading.Event()

    def predict(self, texts, tasks, pairs):
        self.busy.set()
        assert self.held.wait(20)
        return [Prediction(task, text, None, "x" * self.size) for text, task in zip(texts, tasks, strict=True)]

    def check(self, texts, tasks, pairs): ...

    def changed(self):
        return ()


@contextmanager
def serving(engine, limits=None, admin=None):
    """Serve on a free port of this machine, and yield a client, the server and its thread."""
    import httpx

    from hfadapt.inference.serving.server import listen, make_server

    server = make_server(engine, limits, admin)
    heard = listen("127.0.0.1", 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [heard]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.005)
        with httpx.Client(base_url=f"http://127.0.0.1:{heard.getsockname()[1]}", timeout=30) as client:
            client.server, client.thread, client.address = server, thread, heard.getsockname()
            yield client
    finally:
        server.should_exit = True
        thread.join(30)
        heard.close()
    assert not thread.is_alive()


def body(requests):
    texts, tasks, pairs = map(list, zip(*requests, strict=True))
    return {"texts": texts, "tasks": tasks, "pairs": pairs}


def refused(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == PARTS and error["what"] and error["where"], error
    return error
