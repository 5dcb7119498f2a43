"""``hfadapt serve``: what its options say, and what it refuses before it serves."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest

from hfadapt.cli.serve import _named
from hfadapt.errors import ConfigError, HFAdaptError

TOKEN = "0123456789abcdef"


@pytest.fixture
def stub(monkeypatch):
    """Stands for the extra and the engine: keeps what they are given."""
    from hfadapt.inference.engine import Engine

    kept = SimpleNamespace()

    def from_pretrained(folders, **options):
        kept.folders, kept.options = folders, options
        return SimpleNamespace(tasks=("a", "b"))

    def make_server(engine, limits, admin):
        kept.limits, kept.admin = limits, admin
        return SimpleNamespace(run=lambda sockets: setattr(kept, "sockets", sockets))

    class Heard:
        def __enter__(self):
            return self

        def __exit__(self, *_): ...

        def getsockname(self):
            return ("127.0.0.1", 4321)

    server = SimpleNamespace(listen=lambda host, port: Heard(), make_server=make_server)
    monkeypatch.setitem(sys.modules, "hfadapt.inference.serving.server", server)
    monkeypatch.setattr(Engine, "from_pretrained", from_pretrained)
    return kept


def test_options_reach_engine_limits_and_admin(hfadapt, stub, tmp_path):
    (tmp_path / "token").write_text(TOKEN + "\n")
    said = hfadapt(
        "serve", "x", "y", "--dtype", "int8", "--max-characters", 9, "--wait-ms", 1, "--queue-texts", 500,
        "--root", tmp_path, "--token-file", tmp_path / "token", "--base", "b",
    )  # fmt: skip
    assert said.output == "2 tasks at http://127.0.0.1:4321\n" and len(stub.sockets) == 1
    assert [str(one) for one in stub.folders] == ["x", "y"]
    assert (stub.options["dtype"], stub.options["max_characters"], stub.options["base"]) == ("int8", 9, "b")
    assert (stub.limits.wait_ms, stub.limits.queue_texts) == (1, 500)
    assert (stub.admin.root, stub.admin.token) == (tmp_path, TOKEN)


def test_without_a_root_tasks_cannot_be_changed(hfadapt, stub, monkeypatch, tmp_path):
    hfadapt("serve", "x")
    assert stub.admin is None
    monkeypatch.setenv("HFADAPT_SERVE_TOKEN", TOKEN)
    hfadapt("serve", "x")
    assert stub.admin is None
    hfadapt("serve", "x", "--root", tmp_path)
    assert stub.admin.token == TOKEN


def test_what_cannot_be_served_is_refused_before_weights_are_read(hfadapt, stub, tmp_path, monkeypatch):
    monkeypatch.delenv("HFADAPT_SERVE_TOKEN", raising=False)
    for options, message in (
        (("--queue-texts", 0), "queue_texts"),
        (("--root", tmp_path), "could be guessed"),
        (("--root", tmp_path, "--token-file", tmp_path / "none"), "cannot read the token"),
        (("--root", tmp_path / "none"), "no such folder"),
    ):
        with pytest.raises(ConfigError, match=message):
            hfadapt("serve", "x", *options)
    hfadapt("serve", status=2)
    (tmp_path / "token").write_text(TOKEN)
    assert "--root" in hfadapt("serve", "x", "--token-file", tmp_path / "token", status=2).output
    assert not hasattr(stub, "folders")


def test_folders_may_be_named(tmp_path):
    (tmp_path / "a=b").mkdir()
    assert _named(("mail=x", "news=y=z")) == {"mail": Path("x"), "news": Path("y=z")}
    assert _named((str(tmp_path / "a=b"),)) == [tmp_path / "a=b"]
    with pytest.raises(click.UsageError, match="or none"):
        _named(("mail=x", "y"))
    with pytest.raises(click.UsageError, match="twice"):
        _named(("mail=x", "mail=y"))


def test_without_the_extra_it_is_named(hfadapt, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "hfadapt.inference.serving.server", raising=False)
    with pytest.raises(HFAdaptError, match=r"needs uvicorn[\s\S]*hfadapt\[serve\]"):
        hfadapt("serve", "x")


@pytest.mark.parametrize(("host", "port"), [("127.0.0.1", 99999), ("256.1.1.1", 0), ("no.such.host.invalid", 0)])
def test_an_address_that_is_none(host, port):
    pytest.importorskip("fastapi", reason="the extra serve")
    pytest.importorskip("uvicorn", reason="the extra serve")
    from hfadapt.inference.serving.server import listen

    with pytest.raises(ConfigError, match="cannot listen|bad port"):
        listen(host, port)


def test_a_port_that_is_taken():
    pytest.importorskip("fastapi", reason="the extra serve")
    pytest.importorskip("uvicorn", reason="the extra serve")
    from hfadapt.inference.serving.server import listen

    with listen("127.0.0.1", 0) as heard, pytest.raises(ConfigError, match="cannot listen"):
        listen("127.0.0.1", heard.getsockname()[1])
