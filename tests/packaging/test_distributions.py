"""Wheel, source distribution and editable install give exactly three top-level names, with their data."""

from __future__ import annotations

import shutil
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.packaging
NAMES = {"hfadapt", "hfadapt_kernels", "hfadapt_plugins"}
DATA = (
    "hfadapt/py.typed",
    "hfadapt/data/bundled/tasks.json",
    "hfadapt/data/bundled/wn_relation/train.jsonl.gz",
    "hfadapt/data/bundled/wn_relation/LICENSE",
    "hfadapt/data/bundled/sms_spam/NOTICE.md",
    "hfadapt/data/bundled/tweet_valence/test.jsonl.gz",
)


@pytest.fixture(scope="module")
def wheel(source_tree: Path, run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), cwd=source_tree)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def sdist(source_tree: Path, run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sdist")
    run("-m", "build", "--sdist", "--no-isolation", "--outdir", str(out), cwd=source_tree)
    return next(out.glob("*.tar.gz"))


def top_level(files: list[str]) -> set[str]:
    return {name.split("/")[0] for name in files if not name.split("/")[0].endswith((".dist-info", ".data"))}


def test_wheel_has_exactly_three_top_level_names(wheel: Path) -> None:
    files = zipfile.ZipFile(wheel).namelist()
    assert top_level(files) == NAMES
    assert set(DATA) <= set(files)


def test_wheel_built_from_the_sdist_holds_the_same_files(wheel: Path, sdist: Path, run, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    unpacked = next(path for path in tmp_path.iterdir() if path.is_dir())
    run("-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "out"), cwd=unpacked)
    again = next((tmp_path / "out").glob("*.whl"))
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_wheel_imports_from_its_own_files(wheel: Path, run, tmp_path: Path) -> None:
    run("-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path / "site"), str(wheel), cwd=tmp_path)
    code = (
        "import hfadapt, hfadapt_kernels, hfadapt_plugins\n"
        "from hfadapt.data import bundled\n"
        "print(len(bundled.rows('sms_spam', 'test')), hfadapt.__file__)\n"
    )
    printed = run("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert printed.startswith("509 ")
    assert str(tmp_path / "site") in printed


BUILD = ("-m", "build", "--wheel", "--no-isolation", "--outdir")


@pytest.mark.parametrize("compiler", ["missing", "broken"])
def test_without_a_compiler_that_works_the_wheel_is_built_without_kernels(
    compiler: str, source_tree: Path, run, tmp_path: Path
) -> None:
    source = shutil.copytree(source_tree, tmp_path / "source")
    broken = script(tmp_path / "c++", "exit 1")
    options = {"CXX": str(broken if compiler == "broken" else tmp_path / "nowhere")}
    run(*BUILD, str(tmp_path), cwd=source, HFADAPT_BUILD_CPP="auto", **options)
    (wheel,) = tmp_path.glob("*.whl")
    archive = zipfile.ZipFile(wheel)
    files = archive.namelist()
    assert top_level(files) == NAMES and not any(name.endswith(".so") for name in files)
    # what holds nothing of this machine says so, in its name, in its description, and to who asks for the kernels
    assert wheel.name.endswith("-py3-none-any.whl")
    assert b"Root-Is-Purelib: true" in archive.read(next(name for name in files if name.endswith(".dist-info/WHEEL")))
    reason = archive.read("hfadapt_kernels/_C.not_built.txt").decode()
    assert options["CXX"] in reason and ("exit status 1" if compiler == "broken" else "could be started") in reason
    with pytest.raises(AssertionError, match=r"nowhere|exit status 1"):
        run(*BUILD, str(tmp_path), cwd=source, HFADAPT_BUILD_CPP="1", **options)


def test_with_a_compiler_the_wheel_serves_every_python_and_holds_the_kernels(
    source_tree: Path, run, tmp_path: Path
) -> None:
    """The real compiler is at work in ``make test``; here one that writes empty files shows what is packed."""
    source = shutil.copytree(source_tree, tmp_path / "source")
    compiler = script(tmp_path / "c++", 'while [ "$1" != -o ]; do shift; done; : > "$2"')
    run(*BUILD, str(tmp_path), cwd=source, HFADAPT_BUILD_CPP="1", CXX=str(compiler))
    (wheel,) = tmp_path.glob("*.whl")
    assert "-cp310-abi3-" in wheel.name
    assert "hfadapt_kernels/_C.abi3.so" in zipfile.ZipFile(wheel).namelist()


def test_an_isolated_build_compiles_against_the_torch_of_the_environment_it_installs_into(
    source_tree: Path, run, tmp_path: Path
) -> None:
    """Plain ``pip install .``: its build environment holds setuptools alone."""
    source = shutil.copytree(source_tree, tmp_path / "source")
    run("-m", "venv", str(tmp_path / "env"), cwd=tmp_path)
    python = str(tmp_path / "env" / "bin" / "python")
    own = next((tmp_path / "env").glob("lib*/python*/site-packages"))
    for package in Path(sysconfig.get_path("platlib")).iterdir():
        if not package.name.startswith(("_", "hfadapt", "pip", "setuptools")) and not (own / package.name).exists():
            (own / package.name).symlink_to(package)
    compiler = script(tmp_path / "c++", 'while [ "$1" != -o ]; do shift; done; : > "$2"')
    pip = ["-m", "pip", "install", "--quiet", "--no-deps"]
    run(*pip, str(source), cwd=tmp_path, python=python, HFADAPT_BUILD_CPP="1", CXX=str(compiler))
    assert (own / "hfadapt_kernels" / "_C.abi3.so").is_file()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [({"HFADAPT_BUILD_CPP": "auto"}, True), ({"HFADAPT_BUILD_CPP": "0"}, False), ({"CXX": "no-such-compiler"}, False)],
)
def test_torch_is_asked_for_where_there_is_none_and_kernels_can_be_built(
    environment: dict[str, str], wanted: bool, source_tree: Path, run, tmp_path: Path
) -> None:
    run("-m", "venv", "--without-pip", str(tmp_path / "env"), cwd=tmp_path)
    own = next((tmp_path / "env").glob("lib*/python*/site-packages"))
    for package in Path(sysconfig.get_path("purelib")).iterdir():
        if package.name.startswith(("setuptools", "_distutils_hack")):  # the dist-info too: it names the commands
            (own / package.name).symlink_to(package)
    code = "import build_backend as backend; print(backend.get_requires_for_build_wheel())"
    python = str(tmp_path / "env" / "bin" / "python")
    asked = run(
        "-c", code, cwd=source_tree, python=python, PYTHONPATH="tools", **{"HFADAPT_BUILD_CPP": "auto", **environment}
    )
    assert ("torch>=" in asked.splitlines()[-1]) is wanted


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def borrow_packages(environment: Path) -> None:
    """Give a new environment the build tools and dependencies of this one, behind what is installed into it.

    Not through ``PYTHONPATH``: that comes first, and setuptools names the finder of an editable install after the
    package, so the finder of this environment's own editable install would be the one that is imported.
    """
    own = next(environment.glob("lib*/python*/site-packages"))
    (own / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")


@pytest.mark.parametrize("mode", ["lenient", "strict"])
def test_editable_install_imports_the_working_tree(mode: str, source_tree: Path, run, tmp_path: Path) -> None:
    # Without pip, and so without the old setuptools that some versions of Python bring along.
    run("-m", "venv", "--without-pip", str(tmp_path / "env"), cwd=tmp_path)
    python = str(tmp_path / "env" / "bin" / "python")
    borrow_packages(tmp_path / "env")
    pip = ["-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    mode_option = f"--config-settings=editable_mode={mode}"
    run(*pip, mode_option, "--editable", str(source_tree), cwd=tmp_path, python=python)
    code = "import hfadapt, hfadapt_kernels, hfadapt_plugins; print(hfadapt.__file__)"
    printed = run("-c", code, cwd=tmp_path, python=python)
    expected = source_tree / "build" if mode == "strict" else source_tree / "hfadapt"
    assert str(expected) in printed
