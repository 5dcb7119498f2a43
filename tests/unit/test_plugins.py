"""Loading of plugins: what is broken is named and skipped, and everything has an origin."""

import importlib.metadata
import logging
import types

import pytest
import torch

from hfadapt import hookimpl, plugins
from hfadapt.errors import PluginError, RegistryError
from hfadapt.method import Method, MethodConfig
from hfadapt.plugins import loading
from hfadapt.plugins.registry import Registry
from hfadapt_kernels import BackendError, use_backend
from hfadapt_kernels import backend as kernels
from hfadapt_kernels.backend import Implementation


class Entry:
    """An entry point whose ``load`` returns an object, or raises."""

    def __init__(self, name, loads):
        self.name, self.loads, self.value = name, loads, f"{name}_module"
        self.dist = types.SimpleNamespace(name=f"{name}-dist", version="1.2")

    def load(self):
        if isinstance(self.loads, Exception):
            raise self.loads
        return self.loads


@pytest.fixture
def install(monkeypatch):
    def put(*entries):
        monkeypatch.setattr(loading, "entry_points", lambda group: [e for e in entries if group == "hfadapt"])
        plugins.reload()

    yield put
    monkeypatch.setattr(loading, "entry_points", importlib.metadata.entry_points)
    plugins.reload()


def plugin(**hooks):
    module = types.ModuleType("some_plugin")
    for name, hook in hooks.items():
        setattr(module, name, hookimpl(hook))
    return module


def record(name):
    return next(r for r in plugins.report() if r.name == name)


def method_of(name):
    config = type("Config", (MethodConfig,), {"method": name})
    return type("Some", (Method,), {"name": name, "config_class": config, "place": lambda *given: ()})()


def register_method(name):
    def register_methods(registry):
        registry.add(name, method_of(name))

    return register_methods


def test_builtin_plugins_load_and_say_so():
    assert [r.name for r in plugins.report()[: len(plugins.BUILTIN_PLUGINS)]] == list(plugins.BUILTIN_PLUGINS)
    assert {r.status for r in plugins.report() if r.origin == "hfadapt"} == {"loaded"}
    assert "bert" in plugins.architectures()


def test_third_party_method_is_registered_with_its_origin(install):
    install(Entry("mine", plugin(register_methods=register_method("mine"))))
    assert plugins.methods().origin("mine") == "mine (mine-dist 1.2)"
    assert record("mine").hooks == ("register_methods",)


def test_plugin_that_fails_to_import_is_named_and_skipped(install, caplog):
    with caplog.at_level(logging.WARNING):
        install(
            Entry("broken", ImportError("no module foo")), Entry("fine", plugin(register_methods=register_method("ok")))
        )
        assert "ok" in plugins.methods()
    assert record("broken").status == "failed"
    assert "'broken' was skipped" in caplog.text and "no module foo" in caplog.text
    assert "Traceback" in record("broken").traceback


def test_plugin_that_raises_in_a_hook_leaves_nothing_behind(install):
    def register_methods(registry):
        registry.add("half", method_of("half"))
        raise RuntimeError("half way")

    install(Entry("half", plugin(register_methods=register_methods)))
    assert "half" not in plugins.methods()
    assert record("half").status == "failed"


def test_misspelt_hook_is_invalid_and_the_known_hooks_are_listed(install):
    install(Entry("typo", plugin(register_method=lambda registry: None)))
    assert record("typo").status == "invalid"
    assert "unknown hooks register_method" in record("typo").error and "register_methods" in record("typo").error


def test_hook_with_a_stray_argument_is_invalid(install):
    install(Entry("stray", plugin(register_methods=lambda registry, nonsense: None)))
    assert record("stray").status == "invalid"
    assert "nonsense" in record("stray").error


def test_clash_of_names_names_both_origins(install):
    install(
        Entry("a", plugin(register_methods=register_method("same"))),
        Entry("b", plugin(register_methods=register_method("same"))),
    )
    assert plugins.methods().origin("same") == "a (a-dist 1.2)"
    assert record("b").status == "failed"
    assert "a (a-dist 1.2)" in record("b").error and "b (b-dist 1.2)" in record("b").error


def two_plugins():
    return [Entry(name, plugin(register_methods=register_method(f"m{name}"))) for name in ("a", "b")]


def test_selection_by_environment(install, monkeypatch):
    monkeypatch.setenv("HFADAPT_PLUGINS", "b")
    install(*two_plugins())
    assert "ma" not in plugins.methods() and "mb" in plugins.methods()
    assert record("a").status == "not selected"


def test_blocked_plugins_do_not_load_and_are_listed(install, monkeypatch):
    monkeypatch.setenv("HFADAPT_BLOCK_PLUGINS", "a, hfadapt_plugins.mixing")
    install(*two_plugins())
    assert "ma" not in plugins.methods() and "mb" in plugins.methods()
    assert record("a").status == record("hfadapt_plugins.mixing").status == "blocked"
    assert "annealed" not in plugins.mixing_strategies()


def backend(name, op="pal_attention"):
    implementation = Implementation(name, lambda: None, lambda: None, lambda device, **facts: None)
    return plugin(register_backends=lambda registry: registry.add(f"{op}-{name}", implementation))


def test_a_backend_of_a_plugin_is_asked_first_and_goes_with_it(install, monkeypatch):
    monkeypatch.delenv("HFADAPT_BACKEND", raising=False)
    op = kernels._OPS["pal_attention"]

    def chosen():
        return op.select("cpu", torch.float32, **op.example_facts).backend

    before = chosen()
    install(Entry("chip", backend("mychip")))
    assert "pal_attention-mychip" in plugins.backends() and chosen() == "mychip"
    assert {row["backend"] for row in kernels.explain() if row["op"] == "pal_attention" and row["chosen"]} == {"mychip"}
    with use_backend("mychip"), pytest.raises(BackendError, match="has no mychip implementation"):
        kernels._OPS["grouped_lora"].select("cpu", torch.float32)
    install()
    assert chosen() == before
    with pytest.raises(BackendError, match="unknown name"):
        use_backend("mychip").__enter__()


@pytest.mark.parametrize(
    ("broken", "message"),
    [(backend("mychip", "pal_atention"), "pal_atention"), (backend("cpu"), "not taken")],
    ids=["unknown op", "a name of ours"],
)
def test_a_backend_that_fits_no_op_is_named_and_skipped(install, broken, message):
    install(Entry("chip", broken))
    assert record("chip").status == "failed" and message in record("chip").error
    assert not list(plugins.backends())


def test_strict_plugins_make_a_failure_fatal(install, monkeypatch):
    monkeypatch.setenv("HFADAPT_STRICT_PLUGINS", "1")
    install(Entry("broken", ImportError("no module foo")))
    with pytest.raises(PluginError, match="'broken' was skipped"):
        plugins.methods()


def test_tracing_prints_hook_calls(install, monkeypatch, capsys):
    monkeypatch.setenv("HFADAPT_TRACE_PLUGINS", "1")
    install(Entry("mine", plugin(register_methods=register_method("mine"))))
    plugins.methods()
    assert "register_methods" in capsys.readouterr().err


def test_registry_suggests_the_nearest_name():
    registry = Registry("method")
    registry.add("lora", 1)
    said = r"unknown method 'lroa'; got: 'lroa'; allowed: lora; try: Did you mean 'lora'\?"
    with pytest.raises(RegistryError, match=said):
        registry["lroa"]


@pytest.mark.parametrize("name", ["LoRA", "a b", "", "ä"])
def test_registry_refuses_malformed_names(name):
    with pytest.raises(RegistryError, match="bad method name"):
        Registry("method").add(name, 1)
