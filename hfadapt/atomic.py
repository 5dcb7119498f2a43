"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import CheckpointError, problem

__all__ = ["atomic_folder", "write_json"]


class atomic_folder:
    """Context manager that yields a temporary folder and puts it in place of ``folder`` only when all went well.

    Files of ``folder`` that the new one does not write are kept. A full disk or a killed process leaves ``folder`` as
    it was.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def __enter__(self) -> Path:
        if self.folder.exists() and not self.folder.is_dir():
            raise CheckpointError(problem("cannot save there", got=f"{self.folder} is a file", allowed="a folder"))
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{self.folder.name}-", dir=self.folder.parent))
        return self.temporary

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if kind is not None:
            shutil.rmtree(self.temporary, ignore_errors=True)
            if isinstance(error, (OSError, SafetensorError)):
                raise CheckpointError(
                    problem(
                        "saving failed; nothing was changed",
                        where=str(self.folder),
                        got=f"{type(error).__name__}: {error}",
                        try_="free some space, or save to another folder",
                    )
                ) from error
            return
        umask = os.umask(0)
        os.umask(umask)
        self.temporary.chmod(0o777 & ~umask)
        if not self.folder.exists():
            self.temporary.rename(self.folder)
            return
        for path in sorted(self.temporary.rglob("*")):
            if path.is_file():
                target = self.folder / path.relative_to(self.temporary)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
        shutil.rmtree(self.temporary, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document, whole or not at all; numbers that JSON does not know are written as floats."""
    temporary = path.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(value, indent=1, default=float) + "\n", "utf-8")
    temporary.replace(path)
