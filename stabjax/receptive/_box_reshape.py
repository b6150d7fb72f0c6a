"""Boxes of entries that are dealt out anew: reshaped, joined end to end, looked up, resampled."""

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod
from typing import Any

import numpy as np

from stabjax.receptive._box import (
    STILL,
    Span,
    Step,
    agreed,
    clipped,
    cut,
    nothing,
    permute,
    settled,
    shown,
    stepped,
    through,
)
from stabjax.receptive._box_windows import at, strided


def reshape(span: Span, old: Sequence[int], new: Sequence[int]) -> Span:
    """The boxes of a reshaped array: axes that are split or merged are written out, the others stay as they are."""
    if 0 in old:
        return nothing(len(new), span.side)
    return through(span, lambda span: _dealt(span, old, new))


def _dealt(span: Span, old: Sequence[int], new: Sequence[int]) -> Span:
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
    if len(seeing) == len(parts) and all(part is parts[0] and part.steps[axis] == STILL for part in seeing):
        return seeing[0]
    inner = [None if span is None else clipped(span) for span in parts]
    agree = agreed(seeing, but=axis)[1]
    moving = [k for k, span in enumerate(parts) if span is not None and span.steps[axis] not in (STILL, None)]
    main = max(moving, key=lambda k: lengths[k]) if agree and moving else None
    continued = None if main is None else _continued(parts, lengths, axis, blank, main)
    if continued is not None:
        return settled(continued, _written(inner, lengths, axis))
    if moving or not agree:
        return _written(inner, lengths, axis)
    if all(span.within is None for span in seeing):
        return _written(parts, lengths, axis)
    return settled(
        _written([span and replace(span, within=None) for span in parts], lengths, axis), _written(inner, lengths, axis)
    )


def _written(parts: Sequence[Span | None], lengths: Sequence[int], axis: int) -> Span:
    """All boxes written out along the axis."""
    seeing = [span for span in parts if span is not None]
    steps, _ = agreed(seeing, but=axis)
    others = np.broadcast_shapes(*[(*span.ends.shape[: axis + 1], 1, *span.ends.shape[axis + 2 :]) for span in seeing])
    written = []
    for part, length in zip(parts, lengths):
        shape = (*others[: axis + 1], length, *others[axis + 2 :])
        written.append(np.full(shape, np.inf) if part is None else np.broadcast_to(part.ends, shape))
    ends = np.concatenate(written, axis + 1)
    still = all(span.steps[axis] == STILL for span in seeing) and (ends == ends.take([0], axis + 1)).all()
    steps = (*steps[:axis], STILL if still else None, *steps[axis + 1 :])
    ends = ends.take([0], axis + 1) if still else ends
    return Span(ends, shown(ends, steps), seeing[0].side, all(span.exact for span in seeing))


def _continued(
    parts: Sequence[Span | None], lengths: Sequence[int], axis: int, blank: Sequence[bool], main: int
) -> Span | None:
    """The longest array, gone on with over its neighbours; None if these do not continue it."""
    seeing = [span for span in parts if span is not None]
    base: Any = parts[main]
    offsets = [0, *np.cumsum(lengths).tolist()]
    ends = at(base, axis, np.arange(offsets[-1]) - offsets[main])
    exact = all(span.exact for span in seeing)
    for k, part in enumerate(parts):
        place = slice(offsets[k], offsets[k + 1])
        index = (slice(None),) * (axis + 1) + (place,)
        if part is None:
            if not blank[k]:
                return None
            exact &= not np.isfinite(cut(ends[index], base.side)).any()
        elif k != main and not _continues(part, base, axis, np.arange(place.start, place.stop) - offsets[main]):
            return None
    steps, _ = agreed(seeing, but=axis)
    steps = (*steps[:axis], base.steps[axis], *steps[axis + 1 :])
    return Span(ends, shown(ends, steps), base.side, exact)


def _continues(part: Span, base: Span, axis: int, positions: np.ndarray) -> bool:
    """Whether a neighbour goes on with an array: as it is, a whole side further on, mirrored or by its border."""
    length = base.ends.shape[axis + 1]
    if part.steps[axis] == STILL and len(positions) > 1:
        part = replace(part, ends=np.repeat(part.ends, len(positions), axis + 1))
    expected = at(base, axis, positions)
    if expected.shape != part.ends.shape:
        return False
    if (part.ends == expected).all():
        return True
    if not (np.isfinite(part.ends).all() and np.isfinite(expected).all()):
        return False
    shift = part.ends - expected
    if (shift[0] == -shift[1]).all() and (shift % base.side == 0).all():
        return True
    before, after = positions < 0, positions >= length
    for low, high in (
        (-positions, 2 * length - 2 - positions),
        (-1 - positions, 2 * length - 1 - positions),
        (0, length - 1),
    ):
        mirrored = np.where(before, low, np.where(after, high, positions))
        if ((mirrored >= 0) & (mirrored < length)).all() and (part.ends == at(base, axis, mirrored)).all():
            return True
    return False


def gather(span: Span, places: Sequence[np.ndarray], kept: dict[int, int]) -> Span:
    """Entries at these places, one table of positions for each axis, all of the result's rank.

    ``kept``: axes of the result along which an axis is read as it was.
    """
    return through(span, lambda span: _taken(span, places, kept))


def _taken(span: Span, places: Sequence[np.ndarray], kept: dict[int, int]) -> Span:
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
    place = [*kept, axis] if behind else [axis, *kept]
    even = _resampled(span, axis, table)
    within = _columns(clipped(span), axis, table, kept, behind=behind)
    return within if even is None else settled(permute(even, place), within)


def _columns(span: Span, axis: int, table: np.ndarray, kept: Sequence[int], *, behind: bool) -> Span:
    """What every column of the matrix sees through the rows where it is not zero."""
    ends = span.ends.transpose(0, *[k + 1 for k in kept], axis + 1)
    columns = table.reshape(len(table), -1).T
    made = np.stack([np.where(column, ends, np.inf).min(-1) for column in columns], -1)
    made = made.reshape(*made.shape[:-1], *table.shape[1:])
    others = table.ndim - 1
    still = (None,) * others
    steps = tuple(span.steps[k] for k in kept)
    if not behind:
        made = np.moveaxis(made, range(1 + len(kept), made.ndim), range(1, 1 + others))
    return replace(span, ends=made, steps=(*steps, *still) if behind else (*still, *steps))


def _resampled(span: Span, axis: int, table: np.ndarray) -> Span | None:
    """An axis after a resampling that reads the same neighbours everywhere, but for what lies outside; else None."""
    step, span = span.steps[axis], replace(span, within=None)
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
