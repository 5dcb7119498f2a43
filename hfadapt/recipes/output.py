"""The folder that a run writes to, and the only code that deletes one: nothing goes that no run wrote.

A run leaves a marker in its folder; one that has ended lists its files there. A run that overwrites another trains in a
folder beside it, ``.NAME.overwriting``, and the two are swapped when everything is written: until then, and wherever
the process dies, the older run is whole.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from ..adapters.atomic import replace_folder
from ..errors import ConfigError
from ..errors.full_disk import FullDiskError
from .config import Recipe
from .written import (
    MARKER,
    all_files,
    ended,
    foreign_as_text,
    foreign_files,
    is_a_run,
    read_marker,
    untouched,
    write_marker,
)

__all__ = ["OutputFolder"]

ELSEWHERE = "--output with another folder"


class OutputFolder:
    """Where a run writes. A context manager: a run that dies before it has trained anything leaves nothing behind.

    Args:
        recipe: Names the folder, and what the folder must not hold: its data and its base.
        recipe_file: Must not stand in a folder that is overwritten either.
        overwrite: Replace the run that is there, when this one has ended.
        resume: Go on with the run that is there; with ``overwrite``, with the one that was overwriting it.

    Raises:
        ConfigError: the folder is in use, or holds what no run wrote; nothing was changed.
    """

    def __init__(
        self, recipe: Recipe, recipe_file: Path | None = None, *, overwrite: bool = False, resume: bool = False
    ) -> None:
        if not recipe.output.strip() or "\0" in recipe.output:
            # Path("") is the working folder, which nobody meant
            raise ConfigError(
                "no folder to write to",
                where="output",
                got=repr(recipe.output),
                allowed="a path",
                try_="output: runs/first",
            )
        self.named = Path(recipe.output)
        self._real = Path(os.path.realpath(self.named))
        self._beside = self._real.parent / f".{self._real.name}.overwriting"
        self._needed = {"the recipe": [recipe_file] if recipe_file else [], **_read_by(recipe)}
        self._others: list[str] = []
        self._lock: IO[str] | None = None
        if os.path.lexists(self.named) and not self.named.is_dir():
            raise ConfigError(
                "cannot write there", where=str(self.named), got="no folder", allowed="a folder", try_=ELSEWHERE
            )
        try:
            self._occupied = not untouched(self._real)
        except OSError as error:
            raise ConfigError(
                "the output folder cannot be read",
                where=str(self.named),
                got=error.strerror,
                allowed="a folder that this process may list",
                try_=ELSEWHERE,
            ) from error
        self.place = self._choose(overwrite, resume)
        """The folder to write to; ``named`` itself, or the one beside it."""

    def _choose(self, overwrite: bool, resume: bool) -> Path:
        """Where the run writes, after everything that speaks against it was asked."""
        waiting = os.path.lexists(self._beside)
        self._stale = overwrite and waiting and not resume
        if overwrite and (waiting or self._occupied):
            if self._occupied:
                self._require_replaceable()
            if waiting:
                _require_own(self._beside)
            if resume and not waiting and not ended(self._real):
                return self.named  # cut off before there was anything to overwrite
            if resume and not waiting:
                raise ConfigError(
                    "no run that overwrites it was cut off",
                    where=str(self.named),
                    got="a finished run",
                    allowed="an older run, and beside it one that was cut off while it overwrote that",
                    try_="--overwrite alone to train anew, or --resume alone to add to the finished run",
                )
            return self._beside if resume or self._occupied else self.named
        if not self._occupied:
            return self.named
        if not resume:
            self._refuse_occupied()
        if not is_a_run(self._real):
            raise ConfigError(
                "no run to go on from",
                where=str(self.named),
                got="other files",
                allowed="a folder that hfadapt train wrote",
                try_=ELSEWHERE,
            )
        _require_free(self._real)
        if waiting and ended(self._real):
            raise ConfigError(
                "two runs to go on from",
                where=str(self.named),
                got=f"a finished one, and {self._beside.name} beside it, which was cut off while overwriting it",
                allowed="one run to go on from",
                try_="--overwrite --resume for the latter, or delete that folder",
            )
        return self.named

    def _refuse_occupied(self) -> None:
        ways = [ELSEWHERE]
        if is_a_run(self._real):
            ways.insert(0, "--resume")
            if self._objection() is None:
                ways.insert(0, "--overwrite")
        raise ConfigError(
            "the output folder is not empty",
            where=str(self.named),
            got="a run" if is_a_run(self._real) else "files that no run wrote",
            allowed="an empty folder, or a name that is not in use",
            try_=", or ".join(ways),
        )

    def _require_replaceable(self) -> None:
        found = self._objection()
        if found is not None:
            raise ConfigError(
                f"--overwrite deletes only what a run wrote, and this {found}",
                where=str(self.named),
                got="--overwrite",
                allowed="the folder of an earlier run, with nothing else in it",
                try_=ELSEWHERE,
            )
        _require_free(self._real)

    def _objection(self) -> str | None:
        """What speaks against deleting the folder, as the end of a sentence; None where nothing does."""
        if self.named.is_symlink():
            return f"is a link to {self._real}"
        if os.path.ismount(self._real):
            return "is a mount point"
        places = {
            "the working folder": [Path.cwd()],
            "the home folder": [Path(os.path.expanduser("~"))],
            **self._needed,
        }
        for what, paths in places.items():
            for path in paths:
                real = Path(os.path.realpath(path))
                if real == self._real or self._real in real.parents:
                    return f"{'is' if real == self._real else 'holds'} {what}"
        return foreign_as_text(self._real)

    def __enter__(self) -> OutputFolder:
        self.begin()
        return self

    def __exit__(self, *error: object) -> None:
        if self._lock is not None:
            self._lock.close()
        if read_marker(self.place) is not None and untouched(self.place):
            for path in self.place.iterdir():
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            if self._made:
                with contextlib.suppress(OSError):
                    self.place.rmdir()

    def begin(self) -> None:
        """Make the folder and leave the marker in it; what is there already, and no run's, stays so known.

        Raises:
            ConfigError: the folder cannot be made.
        """
        try:
            if self._stale:
                shutil.rmtree(self._beside)
            self._made = not self.place.exists()
            self.place.mkdir(parents=True, exist_ok=True)
            self._others = foreign_files(self.place)
            write_marker(self.place, self._others)
        except OSError as error:
            raise ConfigError(
                "the output folder cannot be made",
                where=str(self.place),
                got=error.got if isinstance(error, FullDiskError) else error.strerror,
                allowed="a place where this process may make a folder",
                try_=ELSEWHERE,
            ) from error
        self._lock = _locked(self.place)

    def end(self) -> None:
        """List what the run wrote, and put it in place of the run that it overwrites.

        Raises:
            ConfigError: meanwhile somebody wrote into the older run, or it cannot be moved; both runs are whole.
        """
        files = [name for name in all_files(self.place) if name not in self._others]
        write_marker(self.place, self._others, files)
        if self.place == self.named:
            return
        try:
            if not os.path.lexists(self._real):
                self.place.rename(self._real)
            else:
                if not untouched(self._real):
                    self._require_replaceable()
                _swap(self.place, self._real)
        except (OSError, ConfigError) as error:
            raise ConfigError(
                "the run has ended, but the older one was not replaced",
                where=str(self.place),
                got=str(error),
                allowed="an older run that nobody changed meanwhile, and that can be moved",
                try_="look for the new run there, and move it yourself",
            ) from error
        self.place = self.named


def _read_by(recipe: Recipe) -> dict[str, list[Path]]:
    """What a recipe reads from this machine, by what it is."""
    found: dict[str, list[Path]] = {"the base": [Path(recipe.model)]}
    for task in recipe.tasks:
        paths = task.data.values() if isinstance(task.data, Mapping) else [task.data or task.name]
        found[f"data of task {task.name!r}"] = [Path(path) for path in paths]
    return {what: [path for path in paths if os.path.lexists(path)] for what, paths in found.items()}


def _require_own(beside: Path) -> None:
    """Refuse a folder under the name of one that was overwriting, where no run wrote it."""
    found = "is a link" if beside.is_symlink() else foreign_as_text(beside)
    if found is not None:
        raise ConfigError(
            f"a run would train there, and this {found}",
            where=str(beside),
            got="a folder or link that no run left",
            allowed="nothing under that name, or a run that was cut off",
            try_="move it away",
        )
    _require_free(beside)


def _require_free(folder: Path) -> None:
    """Refuse a folder that another process is writing to."""
    if read_marker(folder) is not None:
        lock = _locked(folder)
        if lock is not None:
            lock.close()


def _locked(folder: Path) -> IO[str] | None:
    """Hold the marker for as long as the file is open; the system lets go of it when the process dies.

    Raises:
        ConfigError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    file = open(folder / MARKER, encoding="utf-8")  # noqa: SIM115 (held until the run ends)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise ConfigError(
            "another run is writing there",
            where=str(folder),
            got=f"a lock on {MARKER}",
            allowed="one run a folder at a time",
            try_=ELSEWHERE,
        ) from None
    except OSError:
        pass  # a file system without locks
    return file


def _swap(new: Path, folder: Path) -> None:
    """Put ``new`` in place of ``folder`` and delete the latter."""
    try:
        replace_folder(new, folder, keep=False)
    except OSError:
        # no swap here: for a moment neither stands under the name, and both are whole
        old = folder.with_name(f".{folder.name}.replaced")
        folder.rename(old)
        try:
            new.rename(folder)
        except OSError:
            old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
