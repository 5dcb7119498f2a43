"""Random numbers of a pass that hang on where they are drawn, not on what was drawn before.

A row is to be the same whoever its neighbours are, in training too. What an adapter drops takes numbers from torch's
generator, and every later choice, those of the base among them, would be another one where no row of the batch uses
that adapter. So what runs for some rows only draws from a sequence of its own, and torch's generator goes on from where
it was.
"""

from __future__ import annotations

import zlib

import torch

__all__ = ["DrawSequence", "Draws", "draws_of_pass"]


class Draws:
    """The sequences of one pass.

    Args:
        seed: Drawn for the pass.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def at(self, place: str, calls: dict[str, int] | None = None) -> DrawSequence:
        """Return a context in which torch's generator on the CPU gives the numbers of a place.

        Args:
            place: Who draws.
            calls: ``Pass.calls``, where a place may draw several times in a pass and each time other numbers.
        """
        if calls is not None:
            key = f"draws {place}"
            calls[key] = count = calls.get(key, 0) + 1
            place = f"{place} {count}"
        return DrawSequence(zlib.crc32(place.encode(), self.seed))


class DrawSequence:
    """A context in which torch's generator on the CPU gives the numbers of one place, from the first on.

    Args:
        seed: Of the place.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._before: list[torch.Tensor] = []

    def __enter__(self) -> None:
        self._before.append(torch.default_generator.get_state())
        torch.default_generator.manual_seed(self.seed)

    def __exit__(self, *error: object) -> None:
        torch.default_generator.set_state(self._before.pop())


def draws_of_pass(training: bool, device: torch.device | None) -> Draws | None:
    """Return the sequences of a new pass, or None where all that is drawn comes from torch's generator.

    That is in evaluation, on other devices than the CPU, whose rows are computed together, and in a traced graph.
    """
    if not training or device is None or device.type != "cpu" or torch.compiler.is_compiling():
        return None
    return Draws(int(torch.randint(0, 2**32, (1,))))
