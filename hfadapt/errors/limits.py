"""Which numbers an option may hold: infinite and NaN pass most comparisons that a range is written as."""

from __future__ import annotations

import numbers
from typing import Any, TypeVar, cast

from . import ConfigError, HFAdaptError

__all__ = ["finite", "require_number", "require_seed"]

# The seeds that torch's generators take.
_SEEDS = (-(2**63), 2**64 - 1)

_Number = TypeVar("_Number", int, float, "int | None", "float | None")
#: Numbers end in float32 tensors; a larger one would be infinite there.
_LARGEST = 3.4028234663852886e38


def finite(value: object) -> bool:
    """Say whether a value is a number (a truth value is none) that stays finite in float32."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    # a whole number may be too long for a float: compared, never converted
    size = cast(Any, abs(value) if isinstance(value, numbers.Integral) else abs(float(value)))  # abs may be of any type
    return size <= _LARGEST


def require_number(
    name: str,
    value: _Number,
    *,
    where: str,
    whole: bool = False,
    optional: bool = False,
    also: tuple[float, ...] = (),
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    below: float | None = None,
    error: type[HFAdaptError] = ConfigError,
) -> _Number:
    """Return the value of an option.

    Args:
        name: Of the option.
        value: What it was given.
        where: Whose option it is.
        whole: Only whole numbers.
        optional: ``None`` is allowed.
        also: Numbers outside the range that have a meaning of their own.
        least: The smallest that is allowed.
        above: Below all that are allowed.
        most: The largest that is allowed.
        below: Above all that are allowed.
        error: Raised.

    Raises:
        HFAdaptError: of the given kind; the value is no number, infinite, NaN or out of range.
    """
    if value is None and optional:
        return value
    if finite(value) and value in also:
        return value
    number = cast(Any, value)  # compared only where it is finite, and so not None
    fits = finite(value) and (not whole or isinstance(value, numbers.Integral))
    if (
        fits
        and (least is None or number >= least)
        and (above is None or number > above)
        and (most is None or number <= most)
        and (below is None or number < below)
    ):
        return value
    words = "a whole number" if whole else "a finite number"
    low = [f"{bound:g} {sign}" for sign, bound in (("<=", least), ("<", above)) if bound is not None]
    high = [f"{sign} {bound:g}" for sign, bound in (("<=", most), ("<", below)) if bound is not None]
    if low and high:
        words += f", {low[0]} {name} {high[0]}"
    elif low or high:
        turned = [f"{'>=' if least is not None else '>'} {low[0].split()[0]}"] if low else high
        words += f" {turned[0]}"
    allowed = " or ".join([words, *map(str, also), *(["None"] if optional else [])])
    near = next((bound for bound in (least, most) if bound is not None), None)
    if near is None:
        near = above + 1 if above is not None else below / 2 if below is not None else 1
    raise error(f"bad {name}", where=where, got=repr(value), allowed=allowed, try_=f"{name}={near:g}")


def require_seed(seed: int | None, *, where: str, error: type[HFAdaptError] = ConfigError) -> int | None:
    """Return a seed of torch's generators, or None.

    Args:
        seed: What was given.
        where: To what.
        error: Raised.

    Raises:
        HFAdaptError: of the given kind; it is no whole number of 64 bits.
    """
    if seed is not None and (type(seed) is bool or not isinstance(seed, numbers.Integral)):
        raise error("bad seed", where=where, got=repr(seed), allowed="a whole number, or None", try_="seed=42")
    if seed is not None and not _SEEDS[0] <= seed <= _SEEDS[1]:
        got = f"one of {int(seed).bit_length()} bits"
        raise error("bad seed", where=where, got=got, allowed="64 bits", try_="seed=42")
    return seed
