"""What a Linux library asks of the machine that loads it, held to manylinux_2_28: glibc 2.28, libstdc++ of gcc 8.

Usage: python tools/glibc_limits.py LIBRARY

A library compiled on a newer machine runs on older ones as long as it binds no symbol that theirs lack. ``objdump`` of
binutils reads what it binds.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

__all__ = ["LIBRARIES", "LIMITS", "beyond"]

#: the newest version of each library's symbols, as the policy for x86-64 has them
LIMITS = {"GLIBC": "2.28", "GLIBCXX": "3.4.24", "CXXABI": "1.3.11", "GCC": "7.0.0"}
#: what is there before ours is loaded: the system's, and torch's
LIBRARIES = {
    "libc10.so", "libtorch_cpu.so", "libstdc++.so.6", "libm.so.6", "libgcc_s.so.1", "libc.so.6", "ld-linux-x86-64.so.2",
    "libpthread.so.0", "libdl.so.2", "librt.so.1",
}  # fmt: skip

_SYMBOL = re.compile(r"\*UND\*\s+\S+\s+\(?([A-Za-z]+)_([\d.]+)\)?\s+(\S+)")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def newer_symbols(table: str) -> list[str]:
    """The symbols in the output of ``objdump -T`` that the oldest machine lacks, each with the version it has."""
    return [
        f"{symbol} of {library}_{version}, the limit is {LIMITS.get(library, 'no symbol of that library')}"
        for library, version, symbol in _SYMBOL.findall(table)
        if library not in LIMITS or _numbers(version) > _numbers(LIMITS[library])
    ]


def other_libraries(headers: str) -> list[str]:
    """The libraries in the output of ``objdump -p`` that come neither with every machine nor with torch."""
    return [f"library {name}" for name in re.findall(r"NEEDED\s+(\S+)", headers) if name not in LIBRARIES]


def beyond(library: Path) -> list[str]:
    """Everything that ``library`` asks for and a machine with glibc 2.28 and torch lacks.

    Raises:
        OSError: There is no objdump.
        subprocess.CalledProcessError: The file is no library.
    """

    def objdump(option: str) -> str:
        return subprocess.run(["objdump", option, library], check=True, capture_output=True, text=True).stdout

    return newer_symbols(objdump("-T")) + other_libraries(objdump("-p"))


def main() -> int:
    """Print what is beyond the limits; 1 when something is."""
    found = beyond(Path(sys.argv[1]))
    print("\n".join(found) or f"{sys.argv[1]} loads on glibc 2.28")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
