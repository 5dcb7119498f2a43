"""Whatever a plugin does wrong is named with its origin, kept to itself, and shown."""

from __future__ import annotations

import importlib.metadata
import os
import signal
import types

import click
import pytest
from click.testing import CliRunner

import hfadapt
from hfadapt import hookimpl, plugins
from hfadapt.cli import method_table
from hfadapt.cli.group import LazyGroup, cli, main
from hfadapt.errors import PluginError
from hfadapt.method import Method
from hfadapt.plugins import loading


class Entry:
    """An entry point whose ``load`` returns an object, or raises."""

    def __init__(self, name, loads):
        self.name, self.loads, self.value = name, loads, f"{name}_module"
        self.dist = types.SimpleNamespace(name=f"{name}-dist", version="1.2")

    def load(self):
        if isinstance(self.loads, BaseException):
            raise self.loads
        if isinstance(self.loads, types.FunctionType):
            self.loads()
        return self.loads


def kind_of(value):
    """An id that is the same in every process: no address of an object."""
    return getattr(value, "__name__", "") or (type(value).__name__ if type(value) is object else repr(value))


@pytest.fixture
def install(monkeypatch):
    def put(*entries):
        found = lambda group: [e for e in entries if group == "hfadapt"]  # noqa: E731
        monkeypatch.setattr(loading, "entry_points", found)
        monkeypatch.setattr("hfadapt.cli.group.may_have_entry_points", lambda group: bool(found(group=group)))
        monkeypatch.setattr(LazyGroup, "_plugins_asked", False)
        monkeypatch.setattr(cli, "commands", {})
        cli.__dict__.pop("_plugins_asked", None)
        plugins.reload()

    yield put
    monkeypatch.setattr(loading, "entry_points", importlib.metadata.entry_points)
    cli.__dict__.pop("_plugins_asked", None)
    plugins.reload()


def plugin(**hooks):
    module = types.ModuleType("some_plugin")
    for name, hook in hooks.items():
        setattr(module, name, hookimpl(hook))
    return module


def record(name):
    return next(r for r in plugins.report() if r.name == name)


def shown(*command):
    return CliRunner().invoke(cli, list(command)).output


@pytest.mark.parametrize(
    "raises", [SystemExit(3), SystemExit(), KeyboardInterrupt(), GeneratorExit(), RuntimeError("no")], ids=repr
)
def test_a_plugin_that_exits_at_import_is_named_and_skipped(install, caplog, raises):
    install(Entry("leaves", raises))
    assert "lora" in plugins.methods()
    assert record("leaves").status == "failed"
    assert f"raised {type(raises).__name__}" in record("leaves").error
    assert "'leaves' was skipped" in caplog.text and "leaves-dist 1.2" in caplog.text
    for command in ("doctor", "plugins"):
        assert "leaves-dist" in shown(command) and "failed" in shown(command)


def test_an_interrupt_of_the_users_stops_the_program_and_says_what_it_interrupted(install, caplog):
    def slow():
        os.kill(os.getpid(), signal.SIGINT)

    install(Entry("slow", slow))
    # a job that a shell put into the background is born deaf to interrupts
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            plugins.report()
        assert "interrupted while plugin slow (slow-dist 1.2) was imported" in caplog.text
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, inherited)


@pytest.mark.parametrize("raises", [SystemExit(3), KeyboardInterrupt(), ValueError("no")], ids=kind_of)
def test_a_hook_that_exits_leaves_nothing_behind(install, raises):
    def register_architectures(registry):
        registry.add("mine", lambda config: None)
        raise raises

    install(Entry("leaves", plugin(register_architectures=register_architectures)))
    assert "mine" not in plugins.architectures()
    assert type(raises).__name__ in record("leaves").error


class Hooks:
    @hookimpl
    def register_methods(self, registry):
        """Adds nothing."""


@pytest.mark.parametrize("loads", [5, None, "text", Hooks, types.ModuleType("empty"), object()], ids=kind_of)
def test_what_is_no_plugin_is_invalid(install, loads):
    install(Entry("odd", loads))
    assert "lora" in plugins.methods()
    assert record("odd").status == "invalid"
    assert "hookimpl" in record("odd").error


class Unhashable(Hooks):
    __hash__ = None


class Unreadable(Hooks):
    def __dir__(self):
        raise RuntimeError("not now")


@pytest.mark.parametrize("loads", [Unhashable(), Unreadable()], ids=["unhashable", "unreadable"])
def test_an_object_that_cannot_be_read_takes_no_other_plugin_down(install, loads):
    install(Entry("odd", loads), Entry("fine", Hooks()))
    assert "lora" in plugins.methods()
    assert [record(name).status for name in ("odd", "fine")] == ["failed", "loaded"]


def test_an_object_with_hooks_is_a_plugin(install):
    install(Entry("fine", Hooks()))
    assert record("fine").status == "loaded"


@pytest.fixture(scope="module")
def counted_once():
    """The list of methods counts what each adds to BERT-base: seconds, and the same number in every list."""
    count, known = method_table._count, {}

    def once(configs, model):
        if configs not in known:
            known[configs] = count(configs, model)
        return known[configs]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(method_table, "_count", once)
        yield


@pytest.mark.parametrize("hook", ["methods", "architectures", "mixing_strategies", "regularizers", "backends"])
@pytest.mark.parametrize("thing", [5, None, "text", [], object()], ids=kind_of)
def test_what_is_no_method_or_the_like_is_refused_by_name(install, counted_once, hook, thing):
    def register(registry):
        registry.add("odd", thing)

    install(Entry("odd", plugin(**{f"register_{hook}": register})))
    assert "odd" not in getattr(plugins, hook)()
    assert record("odd").status == "failed" and "'odd' is no" in record("odd").error
    assert "lora" in shown("methods")


class Odd(hfadapt.MethodConfig):
    method = "odd"


class OddMethod(Method):
    """Whole, but for what a test changes; it places nothing, for it is never attached."""

    name = "odd"
    config_class = Odd

    def place(self, config, arch, model):
        return iter(())


def odd_method(**changes):
    return type("Changed", (OddMethod,), changes)()


@pytest.mark.parametrize(
    "thing",
    [
        lambda: Method,
        Method,
        lambda: lambda: None,
        lambda: odd_method(name="other"),
        lambda: odd_method(place=Method.place),
        lambda: odd_method(config_class=hfadapt.MethodConfig),
        lambda: odd_method(capabilities=None),
        lambda: odd_method(summary=None),
        lambda: hfadapt.MethodPreset("odd", None),
        lambda: hfadapt.MethodPreset("other", Odd),
        lambda: hfadapt.MethodPreset("odd", Odd, paper=5),
    ],
    ids=[
        "class",
        "unset",
        "function",
        "name",
        "place",
        "config",
        "capabilities",
        "summary",
        "build",
        "preset-name",
        "preset-paper",
    ],
)
def test_a_method_must_be_whole(install, thing):
    install(Entry("odd", plugin(register_methods=lambda registry: registry.add("odd", thing()))))
    assert "odd" not in plugins.methods() and "is no method" in record("odd").error


def commands(**named):
    def register_commands(group):
        for name, function in named.items():
            group.add_command(click.command(name)(function) if callable(function) else function)

    return plugin(register_commands=register_commands)


def fails():
    raise ValueError("not today")


def test_a_command_that_raises_is_named_with_its_origin(install, monkeypatch, capsys):
    install(Entry("mine", commands(fails=fails, ends=lambda: click.get_current_context().exit(4))))
    result = CliRunner().invoke(cli, ["fails"])
    assert isinstance(result.exception, PluginError)
    assert "plugin mine (mine-dist 1.2): the command 'fails' failed; got: ValueError: not today" in str(
        result.exception
    )
    assert CliRunner().invoke(cli, ["ends"]).exit_code == 4
    monkeypatch.setattr("sys.argv", ["hfadapt", "fails"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 1 and "mine-dist 1.2" in capsys.readouterr().err


@pytest.mark.parametrize("second", [5, None, SystemExit(2), fails], ids=kind_of)
def test_commands_of_a_plugin_that_fails_on_the_way_are_taken_out(install, second):
    def register_commands(group):
        group.add_command(click.command("mine")(fails))
        if isinstance(second, BaseException):
            raise second
        group.add_command(click.command("doctor")(fails) if callable(second) else second)

    other = commands(other=fails)
    install(Entry("bad", plugin(register_commands=register_commands)), Entry("good", other))
    listed = shown("--help")
    assert "other" in listed and "mine" not in listed and "doctor" in listed
    assert record("bad").status == "failed"
    assert "bad-dist" in shown("doctor") and "failed" in shown("plugins")


@pytest.mark.parametrize("result", [5, [5], "text", ValueError("no"), SystemExit(1)], ids=kind_of)
def test_a_hook_that_raises_or_returns_something_else_is_left_out(install, monkeypatch, result):
    from hfadapt.recipes.from_plugins import _no_sections

    def model_card_sections(model):
        if isinstance(result, BaseException):
            raise result
        return result

    def fine(model):
        return ["## Limits"]

    monkeypatch.setenv("HFADAPT_STRICT_PLUGINS", "1")
    install(
        Entry("bad", plugin(model_card_sections=model_card_sections)), Entry("good", plugin(model_card_sections=fine))
    )
    found = loading.call_each("model_card_sections", _no_sections, strict=False, model=None)
    assert [(r.name, sections) for r, sections in found] == [("good", ["## Limits"])]
    assert "model_card_sections" in record("bad").error
    plugins.reload()
    with pytest.raises(PluginError, match="bad-dist"):
        loading.call_each("model_card_sections", _no_sections, model=None)
