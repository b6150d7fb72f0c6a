"""Boxes of entries that are dealt out anew: reshaped, joined end to end, looked up, resampled."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import gcd, prod
from typing import Any

import numpy as np

from stabjax._jaxpr._spans import STILL, Span, Step, agreed, at, clipped, permute, shown, stepped, strided, whole


def reshape(span: Span, old: Sequence[int], new: Sequence[int]) -> Span:
    """The boxes of a reshaped array: axes that are split or merged are written out, the others stay as they are."""
    if 0 in old:
        return whole(len(new), span.side, exact=False)
    ends, steps, done = span.ends, [], 0
    for (i, before), (j, after) in _groups(old, new):
        sizes, targets = old[i : i + before], new[j : j + after]
        mine = span.steps[i : i + before]
        if before == after == 1:
            steps.append(mine[0])
        elif before == 0:
            # An axis of length one in front of another: the next one would begin where that ends.
            following = span.steps[i] if i < len(old) and j + 1 < len(new) and old[i] == new[j + 1] else STILL
            outer = strided(following, old[i]) if following is not None and following != STILL else STILL
            ends = np.expand_dims(ends, done + 1)
            steps.append(outer if outer is not None and outer[0] == 1 else STILL)
        elif after == 0:
            ends = ends.reshape(*ends.shape[: done + 1], *ends.shape[done + 2 :])
        elif all(step == STILL for step in mine):
            ends = ends.reshape(*ends.shape[: done + 1], *[1] * after, *ends.shape[done + 1 + before :])
            steps += [STILL] * after
        else:
            full = (*ends.shape[: done + 1], *sizes, *ends.shape[done + 1 + before :])
            ends = np.broadcast_to(ends, full).reshape(*full[: done + 1], *targets, *full[done + 1 + before :])
            for axis in range(done, done + after):
                step = detected(ends, axis) if ends.shape[axis + 1] > 1 else STILL
                ends = ends.take([0], axis + 1) if step == STILL else ends
                steps.append(step)
        done += after
    return replace(span, ends=ends, steps=tuple(steps))


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Runs of axes with the same entries before and after a reshape: ``((start, count), (start, count))``."""
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        a, b = i, j
        if i < len(old) and j < len(new) and old[i] == new[j]:
            a, b = i + 1, j + 1
        elif i < len(old) and old[i] == 1:
            a += 1
        elif j < len(new) and new[j] == 1:
            b += 1
        else:
            a, b = i + 1, j + 1
            while prod(old[i:a]) != prod(new[j:b]):
                if prod(old[i:a]) < prod(new[j:b]):
                    a += 1
                else:
                    b += 1
        groups.append(((i, a - i), (j, b - j)))
        i, j = a, b
    return groups


def detected(ends: np.ndarray, axis: int) -> Step:
    """The step that the boxes themselves show along an axis, or None."""
    length = ends.shape[axis + 1]
    if length > 4096:
        return None  # a flattened map: nothing slides along it, and the search would take its time
    rows = np.moveaxis(ends, axis + 1, 1).reshape(2, length, -1)
    for period in range(1, min(length // 2, 256) + 1):
        before, after = rows[:, :-period], rows[:, period:]
        seen = np.isfinite(before)
        if not (seen == np.isfinite(after)).all():
            continue
        if not seen.any():
            return STILL
        shift = np.subtract(after, before, out=np.zeros_like(before), where=seen)
        first = float(shift[0][seen[0]][0])
        if (shift[0][seen[0]] == first).all() and (shift[1][seen[1]] == -first).all():
            return (period, round(first))
    return None


def concatenate(parts: Sequence[Span | None], lengths: Sequence[int], axis: int, blank: Sequence[bool]) -> Span:
    """Arrays one behind the other; None sees nothing, and where ``blank`` it is padding.

    Padding, also circular, mirrored, or with the border's own values, continues the array that it stands beside, as
    the zeros around a convolution do: a padded pixel keeps its place outside of the image.
    """
    seeing = [span for span in parts if span is not None]
    offsets = [0, *np.cumsum(lengths).tolist()]
    steps, agree = agreed(seeing, but=axis)
    moving = [k for k, span in enumerate(parts) if span is not None and span.steps[axis] not in (STILL, None)]
    wraps, exact = any(span.wraps for span in seeing), all(span.exact for span in seeing)
    if agree and moving:
        main = max(moving, key=lambda k: lengths[k])
        base: Any = parts[main]
        ends = at(base, axis, np.arange(offsets[-1]) - offsets[main])
        verdicts = [
            _placed(part, base, axis, np.arange(start, stop) - offsets[main]) if part is not None else "same" * padding
            for part, padding, (start, stop) in zip(parts, blank, pairwise(offsets))
        ]
        if all(verdicts):
            wraps |= "wrap" in verdicts
            steps = (*steps[:axis], base.steps[axis], *steps[axis + 1 :])
            return Span(ends, shown(ends, steps), base.side, wraps, exact)
    if agree and not moving and len(seeing) == len(parts) and all(part is parts[0] for part in parts):
        return seeing[0]
    if moving or not agree:
        seeing = [clipped(span) for span in seeing]
        parts = [None if span is None else clipped(span) for span in parts]
        steps, _ = agreed(seeing, but=axis)
        wraps = False
    others = np.broadcast_shapes(*[(*span.ends.shape[: axis + 1], 1, *span.ends.shape[axis + 2 :]) for span in seeing])
    written = []
    for part, length in zip(parts, lengths):
        shape = (*others[: axis + 1], length, *others[axis + 2 :])
        written.append(np.full(shape, np.inf) if part is None else np.broadcast_to(part.ends, shape))
    ends = np.concatenate(written, axis + 1)
    still = all(span.steps[axis] == STILL for span in seeing) and (ends == ends.take([0], axis + 1)).all()
    steps = (*steps[:axis], STILL if still else None, *steps[axis + 1 :])
    return Span(ends.take([0], axis + 1) if still else ends, steps, seeing[0].side, wraps, exact)


def _placed(part: Span, base: Span, axis: int, positions: np.ndarray) -> str:
    """How a neighbour continues an array: as it is (``same``), ``wrap``, mirrored or by its border, or not at all."""
    length = base.ends.shape[axis + 1]
    if part.steps[axis] == STILL and len(positions) > 1:
        part = replace(part, ends=np.repeat(part.ends, len(positions), axis + 1))
    expected = at(base, axis, positions)
    if part is base:
        return "same"
    if expected.shape != part.ends.shape:
        return ""
    if (part.ends == expected).all():
        return "same"
    shift = part.ends - expected
    if (np.isfinite(shift).all()) and (shift[0] == -shift[1]).all() and (shift % base.side == 0).all():
        return "wrap"
    before, after = positions < 0, positions >= length
    for low, high in (
        (-positions, 2 * length - 2 - positions),
        (-1 - positions, 2 * length - 1 - positions),
        (0, length - 1),
    ):
        mirrored = np.where(before, low, np.where(after, high, positions))
        if ((mirrored >= 0) & (mirrored < length)).all() and (part.ends == at(base, axis, mirrored)).all():
            return "border"
    return ""


def gather(span: Span, places: Sequence[np.ndarray], kept: dict[int, int]) -> Span:
    """Entries at these places, one table of positions for each axis, all of the result's rank.

    ``kept``: axes of the result along which an axis is read as it was.
    """
    index = tuple(
        np.zeros_like(table) if span.ends.shape[axis + 1] == 1 else table for axis, table in enumerate(places)
    )
    rank = places[0].ndim
    ends = span.ends[(slice(None), *index)]
    steps: list[Step] = []
    for axis in range(rank):
        step = span.steps[kept[axis]] if axis in kept else detected(ends, axis) if ends.shape[axis + 1] > 1 else STILL
        if step == STILL:
            ends = ends.take([0], axis + 1)
        steps.append(step)
    return replace(span, ends=ends, steps=tuple(steps))


def contract(span: Span, axis: int, table: np.ndarray, kept: Sequence[int], *, behind: bool) -> Span:
    """A product with a matrix of which it is known where it is zero: ``table`` is ``(axis, *others)``.

    The axes of the result are the kept ones and the others, behind them or in front.
    """
    even = _resampled(span, axis, table)
    if even is not None:
        return permute(even, [*kept, axis] if behind else [axis, *kept])
    ends = span.ends.transpose(0, *[k + 1 for k in kept], axis + 1)
    columns = table.reshape(len(table), -1).T
    made = np.stack([np.where(column, ends, np.inf).min(-1) for column in columns], -1)
    made = made.reshape(*made.shape[:-1], *table.shape[1:])
    others = table.ndim - 1
    still = (None,) * others
    steps = tuple(span.steps[k] for k in kept)
    if not behind:
        made = np.moveaxis(made, range(1 + len(kept), made.ndim), range(1, 1 + others))
    return clipped(replace(span, ends=made, steps=(*steps, *still) if behind else (*still, *steps)))


def _resampled(span: Span, axis: int, table: np.ndarray) -> Span | None:
    """An axis after a resampling that reads the same neighbours everywhere, but for what lies outside; else None."""
    step = span.steps[axis]
    if table.ndim != 2 or step is None or step == STILL or step[0] != 1 or not table.any(0).all():
        return None
    entries, count = table.shape
    period, shift = count // gcd(entries, count), entries // gcd(entries, count)
    turns, rest = np.divmod(np.arange(count), period)
    middle = count // period // 2
    ends = []
    for seen in (table.argmax(0), entries - 1 - table[::-1].argmax(0)):
        inside = seen[middle * period + rest] + (turns - middle) * shift
        if (inside.clip(0, entries - 1) != seen).any():
            return None
        ends.append(at(span, axis, inside))
    return stepped(span, axis, np.minimum(*ends), (period, shift * step[1]))
