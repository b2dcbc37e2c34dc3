"""Batches that are split into pieces, compared with a loop over their timesteps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_init_lstm.loops import pieces
from keras_init_lstm.loops.pieces import split


def by_hand(mask, reset_mask):
    """The pieces in the order of the batch, each with what belongs to it.

    Returns:
        A list of `(row, begins_at_reset, timesteps)`. A timestep is its index in the
        batch and whether it is read.
    """
    found = []
    batch, timesteps = mask.shape
    for row in range(batch):
        for t in range(timesteps):
            if t == 0 or reset_mask[row, t]:
                found.append((row, bool(reset_mask[row, t]), []))
            found[-1][2].append((row * timesteps + t, bool(mask[row, t])))
    return found


@st.composite
def batches(draw):
    shape = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    generator = np.random.default_rng(draw(st.integers(0, 2**31)))
    shares = draw(st.tuples(*[st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0])] * 2))
    masks = [generator.random(shape) < share for share in shares]
    absent = draw(st.sampled_from([None, 0, 1]))
    return [None if index == absent else mask for index, mask in enumerate(masks)]


@settings(max_examples=200)
@given(batches(), st.sampled_from([0.0, 1.0]))
def test_all_indices_equal_a_loop_over_the_timesteps(masks, cost):
    mask, reset_mask = masks
    shape = (mask if reset_mask is None else reset_mask).shape
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_PER_CALL", 1.0)
        patch.setattr(pieces, "_PER_TIMESTEP", 0.0)
        found = split(mask, reset_mask, cost)
    mask = np.ones(shape, bool) if mask is None else mask
    reset_mask = np.zeros(shape, bool) if reset_mask is None else reset_mask
    expected = by_hand(mask, reset_mask)
    # The groups run time first, one after another.
    columns, begin = [], 0
    for size, longest in found.groups:
        end = begin + size * longest
        columns += list(np.arange(begin, end).reshape(longest, size).T)
        begin = end
    assert len(found.sources) == begin
    assert len(columns) == len(expected) == len(found.rows) == len(found.resets)
    has_output, of_row = [], {}
    for number, column in enumerate(columns):
        first = found.resets[number]
        # A piece is found by its row, and by its first timestep where it is a reset.
        [(index, (row, is_reset, timesteps))] = [
            (k, piece)
            for k, piece in enumerate(expected)
            if piece[0] == found.rows[number]
            and (piece[2][0][0] == first if first >= 0 else not piece[1])
        ]
        assert is_reset == (first >= 0)
        read = [timestep for timestep, is_read in timesteps if is_read]
        padding = [mask.size] * (len(column) - len(read))
        assert found.sources[column].tolist() == [*read, *padding]
        place = begin + number
        outputs = iter(column)
        for timestep, is_read in timesteps:
            place = next(outputs) if is_read else place
            assert found.places[timestep] == place
            has_output.append(place < begin)
        of_row[row] = max(of_row.get(row, (0, 0)), (index, number))
    assert found.reads_first == all(has_output)
    assert [of_row[row][1] for row in range(shape[0])] == found.last.tolist()


def test_short_pieces_are_padded_only_where_another_call_takes_longer():
    resets = np.zeros((6, 40), bool)
    resets[:5] = True
    cheap = split(None, resets, 1.0)
    assert cheap.groups == [(5 * 40 + 1, 40)]
    expensive = split(None, resets, 1e6)
    assert expensive.groups == [(200, 1), (1, 40)]
    assert len(expensive.sources) == resets.size
