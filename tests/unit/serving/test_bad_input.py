"""What a server refuses: requests that are none, texts that are none, folders that cannot be served."""

from __future__ import annotations

import errno
import json
import math
import shutil
import socket

import pytest
import torch

from hfadapt import Classification, Engine, Task
from hfadapt.inference.serving import Admin, Limits
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer
from tests.unit.engine.case import saved
from tests.unit.engine.test_bad_input import rewritten
from tests.unit.serving.case import BEARER, TASKS, TEXTS, TOKEN, body, need_the_extra, refused, serving

need_the_extra()


@pytest.fixture
def goes_on(client, alone):
    """The server answers as before, with the same tasks, whatever a test sent."""
    yield
    assert client.post("/predict", json=body(TEXTS)).json()["answers"] == alone
    assert [one["name"] for one in client.get("/tasks").json()["tasks"]] == [task.name for task in TASKS]


def raw(client, content):
    """What a connection that says this gets back until it is closed, from either side."""
    found = b""
    with socket.create_connection(client.address, timeout=10) as connection:
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                found += part
        except OSError as error:  # a connection that the server has closed already is no error of the kind's own class
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                raise
    return found


def request(*headers, line="POST /predict HTTP/1.1", content=b""):
    return "\r\n".join([line, "Host: x", "Content-Type: application/json", *headers, "", ""]).encode() + content


@pytest.mark.parametrize(
    "content",
    [
        b"\r\n\r\n",
        b"\x00\xff\xfe garbage \r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # who speaks TLS to it
        b"GET\r\n\r\n",
        b"POST /predict HTTP/9.9\r\n\r\n",
        request(line="POST /predict" + "x" * 100_000 + " HTTP/1.1"),
        request("X: " + "x" * 200_000),
        request("Content-Length: -1"),
        request("Content-Length: " + "9" * 5000),
        request("Content-Length: 2", "Content-Length: 3", content=b"{}"),
        request("Content-Length: abc", content=b"{}"),
        request("Content-Length: 100", content=b"{"),  # and goes away
        request("Transfer-Encoding: chunked", content=b"zz\r\n{}\r\n0\r\n\r\n"),
        request("Transfer-Encoding: rot13", content=b"{}"),
    ],
    ids=range(14),
)
def test_what_is_no_request_is_refused_or_closed_and_the_server_goes_on(client, goes_on, content):
    found = raw(client, content)
    assert not found or 400 <= int(found.split()[1]) < 500, found


@pytest.mark.parametrize("path", ["/predict", "/predict_all"])
@pytest.mark.parametrize(
    "text",
    [None, 3, 3.5, True, [], ["w1"], {"a": "w1"}, "\ud800", "w1 \udfff w2"],
    ids=["null", "int", "float", "bool", "empty list", "list", "object", "half", "half inside"],
)
def test_a_text_that_is_no_text(client, goes_on, path, text):
    sent = {"texts": ["w1", text], "tasks": "topic"} if path == "/predict" else {"text": text, "tasks": ["topic"]}
    error = refused(client.post(path, content=json.dumps(sent), headers={"Content-Type": "application/json"}), 422)
    assert "text" in error["where"]
    if path == "/predict":
        sent = {"texts": ["w1"], "tasks": "span", "pairs": [text]}
        refused(client.post(path, content=json.dumps(sent), headers={"Content-Type": "application/json"}), 422)


@pytest.mark.parametrize("task", ["topc", "", "\0", "\ud800", 3, None, ["topic"]])
def test_a_task_that_is_none(client, goes_on, task):
    for path, sent in (
        ("/predict", {"texts": ["w1", "w2"], "tasks": ["topic", task]}),
        ("/predict_all", {"text": "w1", "tasks": ["topic", task]}),
    ):
        refused(client.post(path, content=json.dumps(sent), headers={"Content-Type": "application/json"}), 422)


def test_empty_texts_are_answered_as_by_the_engine(client, goes_on, engine):
    found = client.post("/predict", json={"texts": ["", " ", "\0", "w1"], "tasks": "topic"}).json()["answers"]
    assert [one["score"] for one in found] == [engine.predict(one, "topic")[0].score for one in ("", " ", "\0", "w1")]


def test_ten_megabytes_are_refused_before_and_behind_the_limit_on_bodies(client, goes_on, engine, alone):
    """The body is too large, or where it is let in, the text."""
    sent = json.dumps({"texts": ["w1 " * 3_400_000], "tasks": "topic"})
    assert "bytes or more" in refused(client.post("/predict", content=sent), 413)["got"]
    with serving(engine, Limits(wait_ms=0, body_bytes=1 << 24)) as other:
        for path, asked in (
            ("/predict", {"texts": ["w1", "w1 " * 3_400_000], "tasks": "topic"}),
            ("/predict_all", {"text": "w1 " * 3_400_000}),
            ("/predict", {"texts": ["w1"], "tasks": "span", "pairs": ["w1 " * 3_400_000]}),
        ):
            assert refused(other.post(path, json=asked), 422)["got"] == "10,200,000 characters"
        assert other.post("/predict", json=body(TEXTS)).json()["answers"] == alone


def test_an_unread_answer_and_a_half_sent_request_hold_up_nobody(client, goes_on, alone):
    """Connections that send half a request, or read no answer, stay open beside those that are served."""
    content = json.dumps(body(TEXTS)).encode()
    whole = request(f"Content-Length: {len(content)}", content=content)
    unread = [socket.create_connection(client.address, timeout=10) for _ in range(8)]
    try:
        for number, connection in enumerate(unread):
            connection.sendall(whole * 4 if number % 2 else whole[:-5])
        for _ in range(3):
            assert client.post("/predict", json=body(TEXTS)).json()["answers"] == alone
    finally:
        for connection in unread:
            connection.close()


def test_folders_that_cannot_be_served_are_refused_and_the_tasks_stay(client, goes_on, root, tmp_path):
    other = tiny_model("bert")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    for name, base in (("roberta", tiny_model("roberta")), ("bert", other)):
        base.save_pretrained(tmp_path / name)
        tiny_tokenizer().save_pretrained(tmp_path / name)
        saved(tmp_path / name, root / f"for-{name}", [Task("x", Classification(2))], "lora")
    rewritten(root / "more", root / "nan", lambda _, one: one.view(-1)[:1], math.nan)
    half = shutil.copytree(root / "more", root / "half")
    (half / "model.safetensors").write_bytes((half / "model.safetensors").read_bytes()[:100])
    try:
        for folder in ("for-roberta", "for-bert", "nan", "half"):
            for response in (
                client.post("/tasks", json={"folder": folder}, headers=BEARER),
                client.put("/tasks/topic", json={"folder": folder}, headers=BEARER),
            ):
                error = refused(response, 422)
                assert error["kind"] == "CheckpointError" and folder in error["where"]
    finally:
        for folder in ("for-roberta", "for-bert", "nan", "half"):
            shutil.rmtree(root / folder)


def test_a_task_whose_weights_overflow_is_refused_by_name_and_shares_no_fate(root, tmp_path, alone):
    shutil.copytree(root / "many", tmp_path / "root/many")
    huge = rewritten(root / "more", tmp_path / "root/huge", lambda _, one: one, 3e38)
    with serving(
        Engine.from_pretrained([tmp_path / "root/many", huge]), Limits(), Admin(tmp_path / "root", TOKEN)
    ) as client:
        error = refused(client.post("/predict", json={"texts": ["w1 w2"], "tasks": "more"}), 422)
        assert (error["where"], error["what"]) == ("task 'more'", "the answer is not a number")
        refused(client.post("/predict", json={"texts": ["w1", "w1"], "tasks": ["topic", "more"]}), 422)
        assert client.post("/predict", json=body(TEXTS)).json()["answers"] == alone
