"""``hfadapt serve``: every answer over HTTP is what the engine says of the same text alone, whatever else is sent."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time
from contextlib import contextmanager

import pytest
import torch

import hfadapt
from hfadapt import Classification, Engine, MultiTaskModel, Regression, Span, Task, TokenClassification
from hfadapt.inference.predict import to_dict
from hfadapt.inference.serving import Admin, Limits
from hfadapt.testing.conformance import randomize
from hfadapt.testing.tiny import tiny_model
from hfadapt.testing.toy import tiny_tokenizer

pytest.importorskip("fastapi", reason="the extra serve")
pytest.importorskip("uvicorn", reason="the extra serve")
pytest.importorskip("prometheus_client", reason="the extra serve")
httpx = pytest.importorskip("httpx", reason="the client of these tests")

from starlette.testclient import TestClient  # noqa: E402  # of the extra

from hfadapt.inference.serving.app import make_app  # noqa: E402  # needs the extra
from hfadapt.inference.serving.server import listen, make_server  # noqa: E402

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


def saved(base, folder, tasks, method, seed):
    model = MultiTaskModel.from_pretrained(str(base), tasks=tasks, method=method)
    torch.manual_seed(seed)
    randomize(model.base)
    for parameter in model.heads.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A root with two folders of adapters, and their base beside it."""
    place = tmp_path_factory.mktemp("serve")
    torch.manual_seed(0)
    tiny_model("bert").save_pretrained(place / "base")
    tiny_tokenizer().save_pretrained(place / "base")
    saved(place / "base", place / "root/many", TASKS, hfadapt.LoRA(r=4), 1)
    saved(place / "base", place / "root/more", [Task("more", Classification(3))], "par_bn", 2)
    return place / "root"


@pytest.fixture(scope="module")
def engine(root):
    return Engine.from_pretrained(root / "many", max_characters=2000)


@pytest.fixture(scope="module")
def alone(engine):
    """The answer to each text when nothing else is asked."""
    found = [to_dict(engine.predict([text], [task], [pair])[0]) for text, task, pair in TEXTS]
    return [json.loads(json.dumps({k: v for k, v in one.items() if not k.startswith("text")})) for one in found]


@contextmanager
def serving(engine, limits=None, admin=None):
    """Serve on a free port of this machine, and yield a client, the server and its thread."""
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


@pytest.fixture(scope="module")
def client(engine, root):
    limits = Limits(wait_ms=20, request_texts=8, body_bytes=50_000, body_seconds=1)
    with serving(engine, limits, Admin(root, TOKEN)) as found:
        yield found


def body(requests):
    texts, tasks, pairs = map(list, zip(*requests, strict=True))
    return {"texts": texts, "tasks": tasks, "pairs": pairs}


def refused(response, status):
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == PARTS and error["what"] and error["where"], error
    return error


def test_every_kind_of_answer_in_one_request(client, alone):
    response = client.post("/predict", json=body(TEXTS))
    assert response.status_code == 200 and response.json() == {"answers": alone}


def test_requests_of_many_clients_share_batches_and_no_answer_hangs_on_it(client, alone, engine, monkeypatch):
    sizes, stock = [], engine.predict
    monkeypatch.setattr(engine, "predict", lambda texts, *rest: [sizes.append(len(texts)), stock(texts, *rest)][1])
    found = {}

    def ask(number):
        chosen = [number % len(TEXTS), (5 * number + 1) % len(TEXTS)]
        answers = client.post("/predict", json=body([TEXTS[i] for i in chosen])).json()["answers"]
        found[number] = answers == [alone[i] for i in chosen]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert list(found.values()) == [True] * 12 and sum(sizes) == 24
    assert max(sizes) > 2, "no two requests shared a batch"


def test_one_task_for_all_texts_and_all_tasks_for_one_text(client, alone):
    found = client.post("/predict", json={"texts": ["w1 w2 w3", "w1 w2"], "tasks": "topic"}).json()["answers"]
    assert found == [alone[0], alone[4]]
    found = client.post("/predict_all", json={"text": "w1 w2 w3"}).json()["answers"]
    assert [one["task"] for one in found] == ["topic", "score", "tags"] and found[0] == alone[0]
    found = client.post("/predict_all", json={"text": "w11 w12", "pair": "w13 w14 w15 w16"}).json()["answers"]
    assert found == [alone[3]]
    found = client.post("/predict_all", json={"text": "w1 w2", "tasks": ["topic"]}).json()["answers"]
    assert found == [alone[4]]


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [
        ({"texts": ["w1"], "tasks": "topc"}, 422, "topic"),
        ({"texts": ["w1"], "tasks": ["topic", "score"]}, 422, "1 texts, 2 tasks"),
        ({"texts": ["w1"], "tasks": "topic", "pairs": []}, 422, "0 pairs"),
        ({"texts": ["w1"], "tasks": "span"}, 422, "second text"),
        ({"texts": ["w1"], "tasks": "tags", "pairs": ["w2"]}, 422, "one text"),
        ({"texts": [], "tasks": "topic"}, 422, "texts"),
        ({"texts": "w1", "tasks": "topic"}, 422, "list"),
        ({"texts": [3], "tasks": "topic"}, 422, "string"),
        ({"texts": [None], "tasks": "topic"}, 422, "string"),
        ({"texts": ["w1"], "task": "topic"}, 422, "more"),
        ({"tasks": "topic"}, 422, "required"),
        ({"texts": ["w1 " * 1000], "tasks": "topic"}, 422, "3,000 characters"),
        ({"texts": ["w1"] * 9, "tasks": "topic"}, 413, "at most 8"),
        ({"texts": ["w1 " * 20_000], "tasks": "topic"}, 413, "50,000"),
        (["w1"], 422, "body"),
        (None, 422, "body"),
    ],
)
def test_malformed_and_oversized_requests(client, alone, sent, status, said):
    assert said in json.dumps(refused(client.post("/predict", json=sent), status))
    assert client.post("/predict", json=body(TEXTS[:1])).json()["answers"] == alone[:1]


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\xff\xfe", b"[" * 40_000, b'{"texts": ["w1 \\ud800"], "tasks": "topic"}',
        b'{"texts": ["w1"], "tasks": "\\ud800"}', b'{"texts": ["w1"], "tasks": "topic", "\\ud800": 1}', b"NaN",
        b'{"texts": [1e999], "tasks": "topic"}', b'{"texts": [""], "tasks": "\\u0000"}',
    ],
)  # fmt: skip
def test_bodies_that_are_no_json_or_no_text(client, content):
    response = client.post("/predict", content=content, headers={"Content-Type": "application/json"})
    assert 400 <= response.status_code < 500 and refused(response, response.status_code)


def test_other_paths_methods_and_kinds_of_content(client):
    refused(client.get("/nowhere"), 404)
    refused(client.get("/predict"), 405)
    refused(client.post("/predict", content=b"texts=w1", headers={"Content-Type": "text/plain"}), 422)


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


def test_a_client_that_sends_too_slowly(client, alone):
    with raw(client, head(100) + b"{") as connection:
        assert client.post("/predict", json=body(TEXTS[:1])).json()["answers"] == alone[:1]
        assert b" 408 " in status_line(connection)


class Slow:
    """An engine whose answers are long, and wait until they are let go."""

    def __init__(self, tasks, size=1):
        self.tasks, self.size = tasks, size
        self.busy, self.held = threading.Event(), threading.Event()

    def predict(self, texts, tasks, pairs):
        from hfadapt.inference.predict import Prediction

        self.busy.set()
        assert self.held.wait(20)
        return [Prediction(task, text, None, "x" * self.size) for text, task in zip(texts, tasks, strict=True)]

    def check(self, texts, tasks, pairs): ...

    def changed(self):
        return ()


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


def test_an_engine_that_fails_is_an_error_of_that_request_alone(engine):
    class Broken(Slow):
        def predict(self, texts, tasks, pairs):
            if "crash" in texts:
                raise MemoryError("/secret/place")
            return super().predict(texts, tasks, pairs)

    broken = Broken(engine.tasks)
    broken.held.set()
    with TestClient(make_app(broken), raise_server_exceptions=False) as client:
        response = client.post("/predict", json={"texts": ["crash"], "tasks": "topic"})
        assert response.status_code == 500 and response.json()["error"]["kind"] == "ServerError"
        assert "secret" not in response.text
        assert client.post("/predict", json={"texts": ["w1"], "tasks": "topic"}).is_success
        assert 'status="500"' in client.get("/metrics").text


def test_tasks_come_and_go_over_http(client, alone, engine):
    listed = client.get("/tasks").json()["tasks"]
    assert [one["name"] for one in listed] == [task.name for task in TASKS]
    assert listed[0] == {
        "name": "topic", "kind": "classification", "pair": False, "labels": ["low", "high"], "changed": False
    }  # fmt: skip
    added = client.post("/tasks", json={"folder": "more", "called": "new"}, headers=BEARER)
    assert added.status_code == 201 and added.json()["tasks"][-1]["name"] == "new"
    before = client.post("/predict", json={"texts": ["w1 w2"], "tasks": "new"}).json()["answers"]
    assert len(before[0]["scores"]) == 3
    assert refused(client.post("/tasks", json={"folder": "more", "called": "new"}, headers=BEARER), 409)
    assert client.put("/tasks/new", json={"folder": "more"}, headers=BEARER).is_success
    assert client.post("/predict", json={"texts": ["w1 w2"], "tasks": "new"}).json()["answers"] == before
    assert 'hfadapt_texts_total{task="new"} 2.0' in client.get("/metrics").text
    assert client.delete("/tasks/new", headers=BEARER).is_success
    assert 'task="new"' not in client.get("/metrics").text
    assert "new" in refused(client.post("/predict", json={"texts": ["w1"], "tasks": "new"}), 422)["what"]
    assert "topic" in refused(client.delete("/tasks/topc", headers=BEARER), 404)["try"]
    refused(client.put("/tasks/new", json={"folder": "more"}, headers=BEARER), 404)
    assert client.post("/predict", json=body(TEXTS)).json()["answers"] == alone


@pytest.mark.parametrize(
    ("folder", "status"), [("../base", 422), ("/etc", 422), ("nowhere", 422), ("", 422), ("empty", 422)]
)
def test_folders_that_are_not_served(client, alone, root, folder, status):
    (root / "empty").mkdir(exist_ok=True)
    refused(client.post("/tasks", json={"folder": folder}, headers=BEARER), status)
    assert client.post("/predict", json=body(TEXTS)).json()["answers"] == alone


def test_only_who_knows_the_token_changes_tasks(client, engine):
    names = [task.name for task in engine.tasks]
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {TOKEN}"}):
        for response in (
            client.post("/tasks", json={"folder": "more"}, headers=headers),
            client.put("/tasks/topic", json={"folder": "more"}, headers=headers),
            client.delete("/tasks/topic", headers=headers),
        ):
            assert TOKEN not in str(refused(response, 401)) and response.headers["WWW-Authenticate"] == "Bearer"
    assert [task.name for task in engine.tasks] == names


def test_without_a_root_nobody_changes_tasks(engine):
    with TestClient(make_app(engine)) as client:
        for response in (
            client.post("/tasks", json={"folder": "more"}, headers=BEARER),
            client.put("/tasks/topic", json={"folder": "more"}, headers=BEARER),
            client.delete("/tasks/topic", headers=BEARER),
        ):
            assert "--root" in refused(response, 403)["try"]
        assert len(client.get("/tasks").json()["tasks"]) == len(TASKS)


def test_a_folder_that_changed_under_the_engine_is_refused_by_name(root, tmp_path, alone):
    mine = shutil.copytree(root / "more", tmp_path / "root/mine")
    shutil.copytree(root / "many", tmp_path / "root/many")
    own = Engine.from_pretrained([tmp_path / "root/many", mine])
    with serving(own, Limits(watch_seconds=0.05), Admin(tmp_path / "root", TOKEN)) as client:
        request = {"texts": ["w1 w2"], "tasks": "more"}
        before = client.post("/predict", json=request).json()["answers"]
        saved(root.parent / "base", mine, [Task("more", Classification(3))], "par_bn", 5)
        until = time.monotonic() + 10
        while client.get("/health").json()["changed"] != ["more"] and time.monotonic() < until:
            time.sleep(0.02)
        assert "'more'" in refused(client.post("/predict", json=request), 409)["where"]
        assert [one["changed"] for one in client.get("/tasks").json()["tasks"]] == [False] * 4 + [True]
        assert client.post("/predict", json=body(TEXTS)).json()["answers"] == alone
        assert client.put("/tasks/more", json={"folder": "mine"}, headers=BEARER).is_success
        assert client.post("/predict", json=request).json()["answers"] != before


def test_health_metrics_openapi_and_the_page(client):
    assert client.get("/health").json() == {"status": "ok", "tasks": 4, "waiting": 0, "changed": []}
    client.get("/no/such/path")
    client.post("/predict", json={"texts": ["w1"], "tasks": "topic"})
    figures = client.get("/metrics").text
    assert 'hfadapt_requests_total{path="/predict",status="200"}' in figures
    assert 'path="other",status="404"' in figures and "no/such" not in figures
    assert "hfadapt_batch_texts_count" in figures and "hfadapt_tasks 4.0" in figures
    described = client.get("/openapi.json").json()
    assert {"/predict", "/predict_all", "/tasks", "/tasks/{task}", "/health", "/metrics"} <= set(described["paths"])
    assert described["paths"]["/predict"]["post"]["responses"]["429"]["content"]["application/json"]["schema"]
    page = client.get("/")
    assert (
        "text/html" in page.headers["Content-Type"] and "connect-src 'self'" in page.headers["Content-Security-Policy"]
    )


@pytest.mark.browser
def test_the_page_in_a_browser(client, alone):
    """Debian's chromium, without a window: a task is chosen, a text typed, and the answer read from the table."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="drives the browser")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for one in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
        options.add_argument(one)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    page = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    try:
        page.get(str(client.base_url))
        wait = WebDriverWait(page, 20)

        def at(name):
            return page.find_element(By.ID, name)

        wait.until(lambda _: len(at("tasks").find_elements(By.TAG_NAME, "option")) == len(TASKS))
        choices = at("tasks").find_elements(By.TAG_NAME, "option")
        assert [one.get_attribute("value") for one in choices] == [task.name for task in TASKS]
        choices[0].click()
        at("text").send_keys("w1 w2 w3")
        at("ask").click()
        wait.until(lambda _: at("answers").is_displayed())
        cells = [one.text for one in at("answers").find_elements(By.CSS_SELECTOR, "tbody td")]
        assert cells == ["topic", alone[0]["label"], f"{alone[0]['score']:.3f}"]
        at("text").clear()
        at("text").send_keys("w1 " * 700)
        at("ask").click()
        wait.until(lambda _: "characters" in at("error").text)
        assert "allowed: at most 2,000" in at("error").text and not at("answers").is_displayed()
        # What a text says is never read as HTML, nor fetched.
        page.execute_script("arguments[0].value = '<img src=x onerror=alert(1)>'", at("text"))
        at("ask").click()
        wait.until(lambda _: at("answers").is_displayed())
        assert not page.find_elements(By.CSS_SELECTOR, "img")
        told = [one["message"] for one in page.get_log("browser")]
        assert all("favicon" in one or "422" in one for one in told), told
    finally:
        page.quit()
