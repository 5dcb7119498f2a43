"""A plugin that the command line wrote is one: it registers, passes the conformance suite, and is shown."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from hfadapt import plugins
from hfadapt.errors import ConfigError
from hfadapt.testing import conformance


def test_a_new_plugin_passes_the_conformance_suite(hfadapt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine"
    assert "pip install -e" in hfadapt("new", "plugin", "my_shift", "--folder", folder).output
    assert 'my_shift = "hfadapt_my_shift"' in (folder / "pyproject.toml").read_text()
    compile((folder / "tests" / "test_my_shift.py").read_text(), "test_my_shift.py", "exec")
    monkeypatch.syspath_prepend(str(folder))
    module = importlib.import_module("hfadapt_my_shift")
    plugins.register(module, "my_shift")
    try:
        assert '"my_shift"' in hfadapt("plugins", "show", "my_shift", "--json").stdout
        cases = conformance.cases([module.MyShiftConfig()])
        for case in [case for case in cases if case.model_type == "bert"]:
            for check in conformance.CHECKS:
                check(case)
    finally:
        plugins.unregister("my_shift")


@pytest.mark.parametrize("name", ["My-Method", "a.b", "", "1a", "a__b", "lora"])
def test_names_that_no_plugin_can_have_are_refused(hfadapt, name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        hfadapt("new", "plugin", name, "--folder", tmp_path / "x")
    error = caught.value
    assert error.where and error.got and error.allowed and error.try_ and not (tmp_path / "x").exists()


def test_a_folder_with_files_is_left_as_it_is(hfadapt, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="something already"):
        hfadapt("new", "plugin", "my_shift", "--folder", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
