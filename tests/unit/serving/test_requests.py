"""``hfadapt serve``: every answer over HTTP is what the engine says of the same text alone, whatever else is sent."""

from __future__ import annotations

import json
import shutil
import threading
import time

import pytest

from hfadapt import Classification, Engine, Task
from hfadapt.inference.serving import Admin, Limits
from tests.unit.engine.case import saved
from tests.unit.serving.case import BEARER, TASKS, TEXTS, TOKEN, Slow, body, need_the_extra, refused, serving

need_the_extra()

from starlette.testclient import TestClient  # noqa: E402  # of the extra

from hfadapt.inference.serving.app import make_app  # noqa: E402  # needs the extra


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
