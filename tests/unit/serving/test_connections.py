"""Clients that send too much or too slowly, stop reading, or come when the server is full or about to end."""

from __future__ import annotations

import json
import socket
import threading
import time

import pytest

from hfadapt.inference.serving import Limits
from tests.unit.serving.case import TEXTS, Slow, body, need_the_extra, refused, serving

need_the_extra()


def raw(client, content):
    """A connection of which the test decides what it sends and reads."""
    found = socket.create_connection(client.address, timeout=10)
    found.sendall(content)
    return found


def head(length, path="/predict"):
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {length}"]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def status_line(connection):
    return connection.recv(4096).split(b"\r\n")[0]


def test_a_body_that_is_too_large_is_refused_before_it_is_sent(client):
    with raw(client, head(10**9)) as connection:
        assert b" 413 " in status_line(connection)
    with raw(client, head(1).replace(b"Content-Length: 1", b"Transfer-Encoding: chunked")) as connection:
        chunk = b"%x\r\n" % 20_000 + b" " * 20_000 + b"\r\n"
        connection.sendall(3 * chunk)
        assert b" 413 " in status_line(connection)


def test_who_sends_all_of_a_refused_body_before_reading_gets_the_answer(client, alone):
    """The server has answered long before, and closes no connection on which somebody still sends."""
    with raw(client, head(200_000)) as connection:
        for _ in range(20):
            time.sleep(0.01)
            connection.sendall(b" " * 10_000)
        assert b" 413 " in status_line(connection)
    assert client.post("/predict", json=body(TEXTS[:1])).json()["answers"] == alone[:1]


def test_who_asks_before_sending_is_told_at_once(client):
    with raw(client, head(10**9).replace(b"Host", b"Expect: 100-continue\r\nHost")) as connection:
        assert b" 413 " in status_line(connection)


def test_a_client_that_sends_too_slowly(client, alone):
    with raw(client, head(100) + b"{") as connection:
        assert client.post("/predict", json=body(TEXTS[:1])).json()["answers"] == alone[:1]
        assert b" 408 " in status_line(connection)


def test_a_client_that_stops_reading_holds_up_nobody_and_not_the_end(engine):
    slow = Slow(engine.tasks, size=8_000_000)
    slow.held.set()
    with serving(slow, Limits(wait_ms=0, shutdown_seconds=1)) as client:
        request = json.dumps({"texts": ["w"], "tasks": "topic"}).encode()
        with raw(client, head(len(request)) + request) as connection:
            assert slow.busy.wait(10)
            slow.size = 1
            for _ in range(3):
                assert client.post("/predict", content=request, headers={"Content-Type": "application/json"}).is_success
            started = time.monotonic()
            client.server.should_exit = True
            client.thread.join(20)
            assert not client.thread.is_alive() and time.monotonic() - started < 10
            connection.close()


def test_a_full_queue_and_a_clean_end(engine):
    """What is under way when the server is told to stop is answered; nobody new is heard."""
    slow, found = Slow(engine.tasks), []
    with serving(slow, Limits(wait_ms=0, queue_texts=2, request_texts=2)) as client:

        def ask():
            found.append(client.post("/predict", json={"texts": ["w1", "w2"], "tasks": "topic"}))

        threads = [threading.Thread(target=ask) for _ in range(2)]
        threads[0].start()
        assert slow.busy.wait(10)
        threads[1].start()
        while client.get("/health").json()["waiting"] < 2:
            time.sleep(0.005)
        full = client.post("/predict", json={"texts": ["w3"], "tasks": "topic"})
        assert "2 wait" in refused(full, 429)["got"] and int(full.headers["Retry-After"]) >= 1
        assert "hfadapt_waiting_texts 2.0" in client.get("/metrics").text
        client.server.should_exit = True
        time.sleep(0.3)
        assert client.thread.is_alive()
        with pytest.raises(OSError):
            raw(client, head(1)).close()
        slow.held.set()
        for thread in threads:
            thread.join(10)
        client.thread.join(10)
        assert [one.status_code for one in found] == [200, 200] and not client.thread.is_alive()
