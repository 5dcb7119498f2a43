#!/bin/sh
# torch 2.13.0: torch.save on a disk without room says "unexpected pos" and names neither the disk nor errno.
#
# The zip writer, which is the default, raises a RuntimeError that is no OSError, has no errno, and whose cause says
# "iostream error"; the older format raises OSError 28. So a program that catches OSError to ask for more room, as
# Trainer's users do around checkpoints, does not see it. /dev/full stands for the disk. Exit status 0: it still does so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0

"$venv/bin/python" -W ignore - <<'PY'
import errno

import torch

print(f"torch {torch.__version__}")
state = {"weight": torch.ones(1_000_000)}


def error(**options):
    try:
        torch.save(state, "/dev/full", **options)
    except Exception as found:
        return found
    raise SystemExit("torch changed: a full disk is no error")


default, older = error(), error(_use_new_zipfile_serialization=False)
for name, found in (("default", default), ("older format", older)):
    print(f"{name}: {type(found).__name__}: {found}; caused by {found.__cause__ or found.__context__}")
assert isinstance(older, OSError) and older.errno == errno.ENOSPC, "torch changed: the older format"
assert isinstance(default, RuntimeError) and not isinstance(default, OSError), "torch changed: it is an OSError now"
said = f"{default} {default.__cause__} {default.__context__}"
assert "space" not in said and "unexpected pos" in said and "iostream error" in said, f"torch changed: {said}"
PY
