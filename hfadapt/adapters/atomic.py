"""Files and folders that are written whole or not at all, wherever the process dies.

A new folder is filled and synced beside the old one, and the two are swapped in one step of the file system. Where that
cannot be (the folder is a mount point, or holds the working folder; the file system knows no swap), the new files are
gathered in ``.hfadapt-saved`` inside the folder: from then on the save counts, and whoever reads or saves next moves
the rest of them to their places.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..errors import CheckpointError
from ..errors.full_disk import FullDiskError, is_full, writing

__all__ = ["atomic_folder", "replace_folder", "settle", "target_folder", "write_json", "write_whole"]

_JOURNAL = ".hfadapt-saved"
_DROPPED = ".dropped"
# Without these no library takes the folder for a whole one: first to go, last to come.
_CONFIGS = ("hfadapt_config.json", "adapter_config.json", "config.json")
_DAY = 86400.0
_HOST = "".join(c for c in socket.gethostname() if c.isalnum())[:32] or "host"
# what this process is writing at the moment; all else that carries its number is of an earlier process
_running: set[str] = set()


def target_folder(folder: str | os.PathLike[str]) -> Path:
    """Return the folder to save to, links followed.

    Raises:
        CheckpointError: it is no path, an empty one, or something that is no folder stands there.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise CheckpointError(
            "no folder to save to",
            where="folder",
            got=repr(folder),
            allowed="a path",
            try_="folder='my_adapter', which is made beside what is there",
        )
    given = os.fsdecode(folder)
    if not given.strip() or "\0" in given:
        # Path("") is the working folder, which nobody meant
        raise CheckpointError(
            "no folder to save to",
            where="folder",
            got=repr(given),
            allowed="a path",
            try_="'.' for the working folder",
        )
    found = Path(os.path.realpath(given))
    if os.path.lexists(found) and not found.is_dir():
        raise CheckpointError(
            "cannot save there",
            where="folder",
            got=f"{found} is a file",
            allowed="a folder",
            try_=f"{found.name}_adapter or another name, or move that file away",
        )
    return found


class atomic_folder:
    """Context manager that yields a temporary folder and puts it in place of ``folder`` only when all went well.

    Files of ``folder`` that the new one does not write are kept. A full disk or a killed process leaves ``folder`` as
    it was; what killed saves left beside it is removed by the next one.

    Args:
        folder: Made if it is missing.
        dropped: Names of files and folders in an older folder that belong to what is replaced, and go with it.

    Raises:
        CheckpointError: the folder cannot be written; nothing was changed.
    """

    def __init__(self, folder: str | os.PathLike[str], dropped: Iterable[str] = ()) -> None:
        self.folder = target_folder(folder)
        self.dropped = tuple(dropped)

    def __enter__(self) -> Path:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            settle(self.folder)
            for place in (self.folder.parent, self.folder):
                _remove_leftovers(place, self.folder.name)
            self._inside = self.folder.is_dir() and _cannot_move(self.folder)
            place = self.folder if self._inside else self.folder.parent
            self.temporary = Path(tempfile.mkdtemp(prefix=_prefix(self.folder.name), dir=place))
        except OSError as error:
            raise self._failed(error) from error
        _running.add(str(self.temporary))
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        try:
            if error is None:
                self._put_in_place()
        except OSError as failure:
            raise self._failed(failure) from failure
        finally:
            _running.discard(str(self.temporary))
            shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise self._failed(error) from error

    def _failed(self, error: Exception) -> CheckpointError:
        found = f"{type(error).__name__}: {error}"
        if isinstance(error, FullDiskError):
            found = f"{Path(str(error.where)).name}: {error.got}"
        return CheckpointError(
            f"saving failed{', as the disk is full' if is_full(error) else ''}; nothing was changed",
            where=str(self.folder),
            got=found,
            allowed="a disk with room, and a folder that this process may write to",
            try_="free some space, or save to another folder",
        )

    def _put_in_place(self) -> None:
        umask = os.umask(0)
        os.umask(umask)
        self.temporary.chmod(0o777 & ~umask)
        written = sorted(p.relative_to(self.temporary) for p in self.temporary.rglob("*") if not p.is_dir())
        for path in written:
            # Where a file gets its place on the disk only now, this is where room is lacking.
            with writing(self.temporary / path, (self.temporary / path).stat().st_size):
                _sync(self.temporary / path)
        if not self.folder.exists():
            _sync_folders(self.temporary)
            try:
                self.temporary.rename(self.folder)
            except OSError as error:
                # another rank made the folder meanwhile, and wrote a file of its own into it
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                _sync_folder(self.folder.parent)
                return
        if not self._inside:
            shutil.copystat(self.folder, self.temporary)
            try:
                replace_folder(self.temporary, self.folder, self.dropped)
                return
            except OSError:
                pass  # no swap or no hard links here
        self._through_journal(written)

    def _through_journal(self, written: list[Path]) -> None:
        staged = Path(tempfile.mkdtemp(prefix=_prefix(self.folder.name), dir=self.folder))
        _running.add(str(staged))
        try:
            for path in written:
                (staged / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(self.temporary / path, staged / path)
                _sync(staged / path)
            dropped = [name for name in self.dropped if Path(name) not in written]
            (staged / _DROPPED).write_text("\n".join(dropped), "utf-8")
            _sync(staged / _DROPPED)
            _sync_folders(staged)
            staged.rename(self.folder / _JOURNAL)  # from here on the new save counts
        finally:
            _running.discard(str(staged))
            shutil.rmtree(staged, ignore_errors=True)
        _sync_folder(self.folder)
        # what cannot be moved now is moved by who reads it
        with contextlib.suppress(OSError):
            settle(self.folder)


def replace_folder(new: Path, folder: Path, dropped: Iterable[str] = (), *, keep: bool = True) -> None:
    """Swap a finished folder with the one that it replaces, in one step; the older one is deleted afterwards.

    Args:
        new: On the same file system; gone afterwards.
        folder: The older one.
        dropped: Names in the older folder to leave out.
        keep: Carry over what the older folder has and the new one lacks.

    Raises:
        OSError: the system cannot swap folders, or link files; ``folder`` is as it was.
    """
    if keep:
        _carry(folder, new, dropped)
    _sync_folders(new)
    _exchange(new, folder)
    _sync_folder(folder.parent)
    if keep:
        # what was written into the older one since
        with contextlib.suppress(OSError):
            _carry(new, folder, dropped)
    shutil.rmtree(new, ignore_errors=True)


def settle(folder: Path) -> None:
    """Finish a save that was cut off after its files were gathered inside ``folder``.

    Raises:
        OSError: the files cannot be moved.
    """
    journal = folder / _JOURNAL
    if not journal.is_dir():
        return
    waiting = [p.relative_to(journal) for p in journal.rglob("*") if not p.is_dir() and p.name != _DROPPED]
    dropped = journal / _DROPPED
    gone = dropped.read_text("utf-8").splitlines() if dropped.is_file() else []
    configs = [name for name in _CONFIGS if Path(name) in waiting or name in gone]
    for name in [*configs, *(name for name in gone if name not in configs)]:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    for path in sorted(waiting, key=lambda path: (str(path) in _CONFIGS, path)):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (journal / path).replace(folder / path)
    _sync_folder(folder)
    shutil.rmtree(journal)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, whole or not at all; numbers that JSON does not know are written as floats."""
    write_whole(path, (json.dumps(value, indent=1, default=float) + "\n").encode())


def write_whole(path: Path, data: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: it cannot be written; an older one is as it was. Where the disk is full, a ``FullDiskError``.
    """
    with writing(path, len(data)):
        _write_whole(path, data)


def _write_whole(path: Path, data: bytes) -> None:
    _remove_leftovers(path.parent, path.name)
    handle, name = tempfile.mkstemp(prefix=_prefix(path.name), dir=path.parent)
    _running.add(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
    finally:
        _running.discard(name)
    _sync_folder(path.parent)


def _prefix(name: str) -> str:
    return f"{_stem(name)}{_HOST}-{os.getpid()}-"


def _stem(name: str) -> str:
    return f".{name[:120]}.saving-"


def _remove_leftovers(place: Path, name: str) -> None:
    """Remove from ``place`` what saves under ``name`` left behind when they were killed."""
    if not place.is_dir():
        return
    stem = _stem(name)
    for path in [place / entry for entry in os.listdir(place) if entry.startswith(stem)]:
        if _abandoned(path, path.name.removeprefix(stem)):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _abandoned(path: Path, mark: str) -> bool:
    host, _, rest = mark.partition("-")
    number = rest.partition("-")[0]
    if not number.isdecimal():
        return False
    if host != _HOST or os.name == "nt":
        # nobody here knows whether it still runs
        with contextlib.suppress(OSError):
            return time.time() - path.stat().st_mtime > _DAY
        return False
    if int(number) == os.getpid():
        return str(path) not in _running
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        return False
    return False


def _cannot_move(folder: Path) -> bool:
    """Whether a swap would pull the folder away from under somebody: a mount, or this process's working folder."""
    if os.path.ismount(folder) or not os.access(folder.parent, os.W_OK | os.X_OK):
        return True
    with contextlib.suppress(OSError):
        here = Path(os.path.realpath(os.getcwd()))
        return folder == here or folder in here.parents
    return False


def _carry(old: Path, new: Path, dropped: Iterable[str] = ()) -> None:
    """Link every file of ``old`` that ``new`` lacks into ``new``: no byte is copied, open files stay the same files."""
    for entry in os.scandir(old):
        there = new / entry.name
        if entry.name in dropped or entry.name == _JOURNAL:
            continue
        if entry.is_dir(follow_symlinks=False):
            if not os.path.lexists(there):
                there.mkdir()
                shutil.copystat(entry.path, there)
            if there.is_dir() and not there.is_symlink():
                _carry(Path(entry.path), there)
        elif not os.path.lexists(there):
            os.link(entry.path, there, follow_symlinks=False)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_folder(path: Path) -> None:
    # some systems cannot open or sync a folder, and need not
    with contextlib.suppress(OSError):
        _sync(path)


def _sync_folders(root: Path) -> None:
    for path in sorted((p for p in root.rglob("*") if p.is_dir() and not p.is_symlink()), reverse=True):
        _sync_folder(path)
    _sync_folder(root)


def _exchange(first: Path, second: Path) -> None:
    """Swap two paths in one step.

    Raises:
        OSError: the system or the file system cannot.
    """
    libc = ctypes.CDLL(None, use_errno=True) if os.name == "posix" else None
    here, a, b = -100, os.fsencode(first), os.fsencode(second)  # AT_FDCWD
    if sys.platform == "linux" and hasattr(libc, "renameat2"):
        failed = libc.renameat2(here, a, here, b, ctypes.c_uint(2))  # RENAME_EXCHANGE
    elif sys.platform == "darwin" and hasattr(libc, "renamex_np"):
        failed = libc.renamex_np(a, b, ctypes.c_uint(2))  # RENAME_SWAP
    else:
        raise OSError(errno.ENOSYS, "no call swaps two folders here")
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(first), None, str(second))
