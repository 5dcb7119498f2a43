"""What a server does before and behind HTTP, and without what the extra brings."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hfadapt.errors import ConfigError, DataError, HFAdaptError, TaskError
from hfadapt.inference.serving import Admin, Batcher, Limits
from hfadapt.inference.serving.refusals import (
    BadRequest,
    BadToken,
    Changed,
    Closing,
    Refused,
    TooBusy,
    TooLarge,
    as_json,
    headers_of,
    status_of,
)
from hfadapt.inference.serving.watch import FolderWatch

TOKEN = "0123456789abcdef"


class Recorder:
    """Answers each text with itself, and keeps what it was asked together; ``held`` keeps it busy."""

    def __init__(self):
        self.calls, self.busy, self.held = [], threading.Event(), threading.Event()
        self.held.set()

    def predict(self, texts, tasks, pairs):
        self.calls.append(list(texts))
        self.busy.set()
        assert self.held.wait(10)
        self.check(texts, tasks, pairs)
        if "crash" in texts:
            raise RuntimeError("no memory")
        return [f"{text} {task} {pair}" for text, task, pair in zip(texts, tasks, pairs, strict=True)]

    def check(self, texts, tasks, pairs):
        if "bad" in texts:
            raise DataError("a bad text", where=f"text {texts.index('bad')}")


@pytest.fixture
def engine():
    return Recorder()


def submit(batcher, *texts):
    return batcher.submit(texts, ["t"] * len(texts), [None] * len(texts))


def wanted(*texts):
    return [f"{text} t None" for text in texts]


def held(engine, batcher):
    """Keep the engine busy with a first request."""
    engine.held.clear()
    first = submit(batcher, "first")
    assert engine.busy.wait(5)
    return first


def test_what_comes_while_the_engine_is_busy_is_one_batch(engine):
    batches = []
    batcher = Batcher(engine, Limits(wait_ms=0), lambda texts, seconds: batches.append((texts, seconds >= 0)))
    first = held(engine, batcher)
    others = [submit(batcher, "a"), submit(batcher, "b", "c"), submit(batcher, "d")]
    assert batcher.waiting == 4
    engine.held.set()
    assert [one.result(5) for one in (first, *others)] == [wanted("first"), wanted("a"), wanted("b", "c"), wanted("d")]
    batcher.close()
    assert engine.calls == [["first"], ["a", "b", "c", "d"]] and batches == [(1, True), (4, True)]
    assert batcher.waiting == 0


def test_an_idle_engine_waits_for_others_until_the_batch_is_full(engine):
    batcher = Batcher(engine, Limits(wait_ms=60_000, batch_texts=2))
    one = submit(batcher, "a")
    with pytest.raises(TimeoutError):
        one.result(0.05)
    other = submit(batcher, "b")
    assert one.result(5) + other.result(5) == wanted("a", "b") and engine.calls == [["a", "b"]]
    batcher.close()


def test_a_request_is_never_split_and_batches_end_before_one_that_does_not_fit(engine):
    batcher = Batcher(engine, Limits(wait_ms=0, batch_texts=3, queue_texts=20, request_texts=10))
    held(engine, batcher)
    found = [submit(batcher, *texts) for texts in ("ab", "cd", "efghi", "j")]
    engine.held.set()
    assert [len(one.result(5)) for one in found] == [2, 2, 5, 1]
    batcher.close()
    assert engine.calls[1:] == [["a", "b"], ["c", "d"], [*"efghi"], ["j"]]


@pytest.mark.parametrize("wrong", ["bad", "crash"])
def test_a_request_that_fails_does_not_trouble_those_it_was_gathered_with(engine, wrong):
    batcher = Batcher(engine, Limits(wait_ms=0))
    held(engine, batcher)
    found = [submit(batcher, "a"), submit(batcher, "b", wrong), submit(batcher, "c")]
    engine.held.set()
    assert found[0].result(5) == wanted("a") and found[2].result(5) == wanted("c")
    with pytest.raises(DataError if wrong == "bad" else RuntimeError, match="text 1" if wrong == "bad" else "memory"):
        found[1].result(5)
    assert submit(batcher, "later").result(5) == wanted("later")
    # Those that can be read are answered together again; only a forward that fails is looked for one by one.
    assert engine.calls[2:-1] == ([["a", "c"]] if wrong == "bad" else [["a"], ["b", "crash"], ["c"]])
    batcher.close()


def test_a_full_queue_says_when_to_come_back(engine):
    batcher = Batcher(engine, Limits(wait_ms=0, queue_texts=3, request_texts=3))
    held(engine, batcher)
    waiting = submit(batcher, "a", "b")
    with pytest.raises(TooBusy, match="2 wait, 2 come[\\s\\S]*at most 3") as caught:
        submit(batcher, "c", "d")
    assert 1 <= int(headers_of(caught.value)["Retry-After"]) <= 60 and status_of(caught.value) == 429
    with pytest.raises(TooLarge, match="4; allowed: at most 3"):
        submit(batcher, *"abcd")
    engine.held.set()
    assert waiting.result(5) == wanted("a", "b") and submit(batcher, "c", "d").result(5) == wanted("c", "d")
    batcher.close()


def test_a_client_that_went_away_is_not_answered(engine):
    batcher = Batcher(engine, Limits(wait_ms=0))
    held(engine, batcher)
    gone, there = submit(batcher, "gone"), submit(batcher, "there")
    assert gone.cancel()
    engine.held.set()
    assert there.result(5) == wanted("there")
    batcher.close()
    assert engine.calls == [["first"], ["there"]]


def test_closing_answers_what_waits_and_takes_no_more(engine):
    batcher = Batcher(engine, Limits(wait_ms=60_000))
    found = [submit(batcher, one) for one in "ab"]
    batcher.close()
    assert [one.result(0) for one in found] == [wanted("a"), wanted("b")] and batcher.closing
    with pytest.raises(Closing, match="about to stop"):
        submit(batcher, "c")


def test_closing_in_time_leaves_nobody_without_an_answer(engine):
    batcher = Batcher(engine, Limits(wait_ms=0))
    first, left = held(engine, batcher), submit(batcher, "left")
    batcher.close(0.05)
    with pytest.raises(Closing, match="before it came to this request"):
        left.result(0)
    engine.held.set()
    assert first.result(5) == wanted("first")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"wait_ms": -1}, "wait_ms"),
        ({"batch_texts": 0}, "batch_texts"),
        ({"queue_texts": 1.5}, "queue_texts"),
        ({"body_bytes": True}, "body_bytes"),
        ({"body_seconds": 0}, "body_seconds"),
        ({"shutdown_seconds": float("nan")}, "shutdown_seconds"),
        ({"watch_seconds": "10"}, "watch_seconds"),
        ({"queue_texts": 10}, "no room for the largest request"),
    ],
)
def test_limits_that_cannot_be(given, message):
    with pytest.raises(ConfigError, match=message):
        Limits(**given)


@pytest.fixture
def root(tmp_path):
    """A folder with an adapter, beside another with a secret."""
    for place in ("root/good", "root/deep/good", "outside"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "adapter_config.json").write_text("{}")
    return tmp_path / "root"


def test_folders_below_the_root(root):
    admin = Admin(root, TOKEN)
    (root / "link").symlink_to(root / "good")
    (root / "good" / "model.safetensors").symlink_to("../deep/good/adapter_config.json")
    assert admin.folder("good") == (root / "good").resolve()
    assert admin.folder("deep/good") == (root / "deep/good").resolve()
    assert admin.folder("link") == (root / "good").resolve()


@pytest.mark.parametrize(
    "given",
    ["", ".", "/", "..", "../outside", "good/../../outside", "good/..", "{outside}", "{root}/good", "out", "out/x",
     "a\0b", "..\\outside", "a" * 5000, "\ud800", "nowhere", "file", "leads", "leads-deep", "loop"],
)  # fmt: skip
def test_folders_elsewhere_are_refused(root, given):
    outside = root.parent / "outside"
    (root / "out").symlink_to(outside)
    (root / "loop").symlink_to(root / "loop")
    (root / "file").write_text("")
    for name, link, to in (("leads", "model.safetensors", outside / "adapter_config.json"), ("leads-deep", "x", "..")):
        (root / name).mkdir()
        (root / name / link).symlink_to(to)
    with pytest.raises(BadRequest, match="folder|link"):
        Admin(root, TOKEN).folder(given.format(outside=outside, root=root))


def test_what_lies_elsewhere_is_not_told_from_what_is_nowhere(root):
    def said(given):
        with pytest.raises(BadRequest) as caught:
            Admin(root, TOKEN).folder(given)
        return str(caught.value).replace(given, "")

    assert said("../outside") == said("../nowhere")


def test_tokens(root):
    admin = Admin(root, TOKEN)
    admin.check(f"Bearer {TOKEN}")
    admin.check(f"bearer  {TOKEN}")
    for header in (None, "", TOKEN, "Bearer", f"Basic {TOKEN}", f"Bearer {TOKEN}x", "Bearer é", f"Bearer {TOKEN[:-1]}"):
        with pytest.raises(BadToken, match="missing or wrong") as caught:
            admin.check(header)
        assert TOKEN not in str(caught.value) and headers_of(caught.value) == {"WWW-Authenticate": "Bearer"}
    assert TOKEN not in repr(admin)
    for token in ("", "short", "é" * 20, None, b"0123456789abcdef"):
        with pytest.raises(ConfigError, match="could be guessed"):
            Admin(root, token)
    with pytest.raises(ConfigError, match="no such folder"):
        Admin(root / "nowhere", TOKEN)


def test_tasks_whose_folders_changed_are_refused_until_they_are_as_before():
    engine = SimpleNamespace(changed=lambda: engine.found, found=())
    watch = FolderWatch(engine, 3600)
    watch.check(["a", "b"])
    engine.found = ("b",)
    watch.look()
    watch.check(["a"])
    with pytest.raises(Changed, match="task 'b'[\\s\\S]*PUT /tasks/b") as caught:
        watch.check(["a", "b"])
    assert status_of(caught.value) == 409
    engine.found = ()
    watch.look()
    watch.check(["a", "b"])
    watch.close()


def test_folders_are_looked_at_again_and_again_and_a_folder_in_the_making_ends_nothing():
    looks = []

    def changed():
        looks.append(1)
        if len(looks) == 1:
            raise FileNotFoundError("adapter_config.json")
        return ("a",)

    watch = FolderWatch(SimpleNamespace(changed=changed), 0.005)
    until = time.monotonic() + 5
    while not watch.changed and time.monotonic() < until:
        time.sleep(0.005)
    watch.close()
    assert watch.changed == {"a"} and len(looks) >= 2
    never = FolderWatch(SimpleNamespace(changed=changed), 0)
    never.look()
    assert never.changed == frozenset()


def test_an_older_look_does_not_undo_a_newer_one():
    """As when a task is replaced while the watch reads the folders that it had."""
    begun, held, answers = threading.Event(), threading.Event(), [("old",), ()]

    def changed():
        found = answers.pop(0)
        if found:
            begun.set()
            assert held.wait(5)
        return found

    watch = FolderWatch(SimpleNamespace(changed=changed), 3600)
    older = threading.Thread(target=watch.look)
    older.start()
    assert begun.wait(5)
    newer = threading.Thread(target=watch.look)
    newer.start()
    newer.join(0.2)
    held.set()
    for thread in (older, newer):
        thread.join(5)
    assert watch.changed == frozenset() and not answers
    watch.close()


def test_errors_have_five_parts_and_strangers_tell_only_their_kind():
    kinds = [one for one in (*Refused.__subclasses__(), TaskError, DataError)]
    for kind in kinds:
        found = as_json(kind("w", where="x", got=1, allowed=2, try_="y"))["error"]
        assert found == {"kind": kind.__name__, "what": "w", "where": "x", "got": "1", "allowed": "2", "try": "y"}
        assert 400 <= status_of(kind("w")) < 600
    found = as_json(RuntimeError("no/such/secret"))["error"]
    assert found["kind"] == "ServerError" and "secret" not in str(found) and status_of(RuntimeError()) == 500
    assert status_of(HFAdaptError("x")) == 422


def test_the_page_needs_nothing_from_elsewhere():
    page = Path(Admin.check.__code__.co_filename).with_name("page.html").read_text("utf-8")
    assert "http:" not in page and "https:" not in page and "innerHTML" not in page
