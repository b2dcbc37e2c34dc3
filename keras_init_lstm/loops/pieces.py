"""Rearranges a batch with masks and resets for a kernel that supports neither.

A reset splits a row into pieces, and the timesteps of a piece that are not masked move
to the left. All of it is computed in NumPy, which takes a fraction of the time that a
backend takes for as many small operations.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

# How many multiplications take as long as one more call of a kernel, and as one more
# timestep in a call: pieces of different lengths run in one call, unless their padding
# would take longer.
_PER_CALL = 5e6
_PER_TIMESTEP = 5e4


class Pieces(NamedTuple):
    """The indices by which a batch is rearranged, and its outputs are put back.

    A piece is the part of a row between two resets. Pieces are sorted by length into
    groups. A group is padded to its longest piece and run in one call, time first:
    `(longest, pieces, features)`. All groups follow one another, and all dimensions but
    the last one are flattened.

    Attributes:
        groups: For each group its number of pieces, and the number of timesteps to
            which they are padded.
        rows: For each piece, the index of its row in the batch.
        resets: For each piece, the index of its first timestep in the batch of
            `batch * timesteps` timesteps; or -1 if the piece doesn't begin at a reset.
        sources: For each timestep of all groups, the index of the timestep of the batch
            that is read, or `batch * timesteps` for padding.
        places: For each timestep of the batch, the index of its output among the
            outputs of all groups, which the states before all pieces follow.
        reads_first: Whether every timestep of the batch has an output. If not, a piece
            begins with masked timesteps, whose output is the state before the piece.
        last: For each row, the index of its last piece.
    """

    groups: Sequence[tuple[int, int]]
    rows: np.ndarray
    resets: np.ndarray
    sources: np.ndarray
    places: np.ndarray
    reads_first: bool
    last: np.ndarray


def split(mask: Any, reset_mask: Any, cost: float) -> Pieces:
    """Returns the pieces of a batch.

    Args:
        mask: Boolean array `(batch, timesteps)`, or `None`.
        reset_mask: Boolean array `(batch, timesteps)`, or `None`. One of the two is
            given.
        cost: The number of multiplications of a row in a timestep.
    """
    shape = mask.shape if reset_mask is None else reset_mask.shape
    batch, timesteps = shape
    is_reset = np.zeros(shape, bool) if reset_mask is None else reset_mask
    begins_piece = is_reset.copy()
    begins_piece[:, 0] = True
    begins = np.flatnonzero(begins_piece)
    piece = np.cumsum(begins_piece) - 1
    # For each timestep, count the read timesteps of its piece up to and including it.
    is_read = np.ones(batch * timesteps, bool) if mask is None else mask.ravel()
    read = np.cumsum(is_read)
    read -= (read - is_read)[begins][piece]
    lengths = read[np.append(begins[1:], batch * timesteps) - 1]
    order = np.arange(len(begins))
    groups = [(len(order), max(1, int(lengths.max())))]
    padding = len(order) * groups[0][1] - int(lengths.sum())
    if padding * cost > _PER_CALL:
        shorter_groups = _groups_of_similar_length(lengths)
        if _cost(shorter_groups, cost) < _cost(groups, cost):
            groups, order = shorter_groups, np.argsort(lengths, kind="stable")
    # For each piece, its position in `order`; the index of its first timestep, and the
    # distance to its next one, among the timesteps of all groups.
    position, first, stride = (np.empty_like(order) for _ in range(3))
    position[order] = np.arange(len(order))
    begin = total = 0
    for size, longest in groups:
        in_group = order[begin : begin + size]
        first[in_group] = total + np.arange(size)
        stride[in_group] = size
        begin, total = begin + size, total + size * longest
    places = first[piece] + (read - 1) * stride[piece]
    sources = np.full(total, batch * timesteps)
    sources[places[is_read]] = np.flatnonzero(is_read)
    has_output = read > 0
    begins = begins[order]
    return Pieces(
        groups=groups,
        rows=begins // timesteps,
        resets=np.where(is_reset.ravel()[begins], begins, -1),
        sources=sources,
        places=np.where(has_output, places, total + position[piece]),
        reads_first=bool(has_output.all()),
        last=position[piece.reshape(shape)[:, -1]],
    )


def _cost(groups: Sequence[tuple[int, int]], cost: float) -> float:
    """Returns the time of all groups, as a number of multiplications."""
    return sum(
        _PER_CALL + longest * (_PER_TIMESTEP + size * cost) for size, longest in groups
    )


def _groups_of_similar_length(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Groups sorted lengths that differ by a factor of at most two."""
    # A length of 5 to 8 gets the exponent 3. Run a piece that reads nothing too.
    exponents = np.ceil(np.log2(np.maximum(lengths, 1))).astype(int)
    sizes = np.bincount(exponents)
    longest = np.zeros(len(sizes), int)
    np.maximum.at(longest, exponents, np.maximum(lengths, 1))
    return [(int(n), int(most)) for n, most in zip(sizes, longest, strict=True) if n]
