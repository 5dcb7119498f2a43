#!/bin/sh
# torch 2.13.0: under torch.compile(fullgraph=True), an exception class with an __init__ of its own loses its message.
#
# A class that takes keyword arguments and hands a text to super().__init__ is ordinary Python. Where such an error is
# raised in a traced function, the user is shown that `super().__init__` cannot be traced, and never the text. With
# `self.args = (text,)` in place of the call the class's own error comes out. Exit status 0: both are still so.
set -eu

venv=$(mktemp -d)
trap 'rm -rf "$venv"' EXIT
python3 -m venv "$venv"
"$venv/bin/pip" install --quiet torch==2.13.0 numpy

"$venv/bin/python" -W ignore - <<'PY'
import torch

TEXT = "a vector is no batch"


class Calls(Exception):
    def __init__(self, what, *, got):
        super().__init__(what)


class Sets(Exception):
    def __init__(self, what, *, got):
        self.args = (what,)


def message(kind):
    def refuse(tensor):
        if tensor.dim() == 1:
            raise kind(TEXT, got=1)
        return tensor

    try:
        torch.compile(refuse, fullgraph=True, backend="eager")(torch.zeros(3))
    except Exception as error:
        return str(error)


for kind in (Calls, Sets):
    said = message(kind)
    print(f"torch {torch.__version__}: {kind.__name__}: {said.splitlines()[0]!r}, with its own text: {TEXT in said}")
    assert (TEXT in said) == (kind is Sets), "torch changed"
PY
