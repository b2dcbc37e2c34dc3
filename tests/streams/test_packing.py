"""Sequences that are packed one after another into the rows of an array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_init_lstm import InitStateLSTM
from keras_init_lstm.streams import pack, unpack
from models import normal
from oracles import assert_same, flat


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(6, 15))
def test_rows_hold_every_sequence_once_in_order(lengths, timesteps):
    sequences = [normal(length, 2, seed=k) for k, length in enumerate(lengths)]
    packed, mask, reset_mask = pack(sequences, timesteps=timesteps)
    assert packed.shape == (*mask.shape, 2) and mask.shape == reset_mask.shape
    assert mask.dtype == reset_mask.dtype == bool and packed.dtype == "float32"
    assert_same(packed[mask], np.concatenate(sequences))
    assert not packed[~mask].any()
    # The first timesteps of the sequences, among all timesteps.
    begins = np.flatnonzero(reset_mask[mask])
    assert begins.tolist() == [0, *np.cumsum(lengths)[:-1]]
    assert not reset_mask[~mask].any()
    # The next sequence does not fit into the padding of a row.
    free = timesteps - mask.sum(1)
    first_lengths = [lengths[int(reset_mask[:row].sum())] for row in range(len(mask))]
    assert all(a < b for a, b in zip(free, first_lengths[1:], strict=False))


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(6, 15))
def test_several_lists_get_the_same_positions(lengths, timesteps):
    inputs = [normal(length, 2, seed=k) for k, length in enumerate(lengths)]
    targets = [np.full(length, k) for k, length in enumerate(lengths)]
    x, y, mask, reset_mask = pack(inputs, targets, timesteps=timesteps)
    assert_same([x, mask, reset_mask], pack(inputs, timesteps=timesteps))
    assert_same([y, mask, reset_mask], pack(targets, timesteps=timesteps))
    assert y.dtype.kind == "i"
    assert_same(unpack(x, mask, reset_mask), inputs)
    assert_same(unpack(y, mask, reset_mask), targets)


def test_a_layer_reads_each_sequence_as_if_alone():
    sequences = [normal(length, 3, seed=length) for length in (4, 2, 7, 1, 5)]
    x, mask, reset_mask = pack(sequences, timesteps=8)
    layer = InitStateLSTM(2, initial_state=0.5, return_sequences=True)
    outputs = layer(x, mask=mask, reset_mask=reset_mask)
    alone = [flat(layer(sequence[None]))[0][0] for sequence in sequences]
    assert_same(unpack(outputs, mask, reset_mask), alone, 1e-6)


@pytest.mark.parametrize(
    ("sequences", "timesteps", "message"),
    [
        ([], 5, r"`sequences\[0\]` must be a list of at least one"),
        ([[1, 2], []], 5, r"`sequences\[0\]\[1\]` .* from 1 to timesteps=5"),
        ([[1, 2], [1] * 6], 5, r"`sequences\[0\]\[1\]` .* from 1 to timesteps=5"),
        ([[[1, 2]], [[1]]], 5, r"`sequences\[0\]\[1\]` .* \(length, 2\)"),
        ([[1], 2], 5, r"`sequences\[0\]\[1\]`"),
        ([[1], [[1], [1, 2]]], 5, r"`sequences\[0\]\[1\]`"),
        ([["a"]], 5, r"`sequences\[0\]\[0\]` must be an array of numbers"),
        ([[1]], 0, "`timesteps` must be a positive integer"),
        ([[1]], True, "`timesteps` must be a positive integer"),
        ([[1]], 2.0, "`timesteps` must be a positive integer"),
        (3, 5, r"`sequences\[0\]` must be a list of at least one"),
        (np.array(3), 5, r"`sequences\[0\]` must be a list of at least one"),
        ({1: [1]}, 5, r"`sequences\[0\]` must be a list of at least one"),
        ({1: []}.values(), 5, r"`sequences\[0\]\[0\]` must be an array of numbers"),
        ([[1.0], np.array(["2020"], "datetime64[Y]")], 5, r"`sequences\[0\]\[1\]`"),
    ],
)
def test_invalid_arguments(sequences, timesteps, message):
    with pytest.raises(ValueError, match=message):
        pack(sequences, timesteps=timesteps)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ([], "at least one list of arrays"),
        ([[[1, 2]], [[1]]], r"`sequences\[1\]` must have .* `sequences\[0\]`, \[2\]"),
        (
            [[[1, 2]], [[1, 2], [3]]],
            r"`sequences\[1\]` must have arrays of the lengths",
        ),
        ([[[1, 2]], [[1, "a"]]], r"`sequences\[1\]\[0\]` must be an array of numbers"),
        ([[[1, 2]], 4], r"`sequences\[1\]` must be a list of at least one"),
    ],
)
def test_lists_that_do_not_fit(lists, message):
    with pytest.raises(ValueError, match=message):
        pack(*lists, timesteps=4)


T, F = True, False


@pytest.mark.parametrize(
    ("outputs", "mask", "reset_mask", "message"),
    [
        (np.ones((2, 2)), [[T, T]], [[T, F]], r"`outputs` must have the batch"),
        (np.ones(2), [[T, T]], [[T, F]], r"`outputs` must have the batch"),
        ([[1, 2]], [[T, T]], [[T, F]], r"`outputs` must have the batch"),
        (np.ones((1, 2)), [[1, 1]], [[T, F]], "`mask` must be booleans of shape"),
        (np.ones((1, 2)), [T, T], [T, F], "`mask` must be booleans of shape"),
        (np.ones((1, 2)), None, None, "`mask` must be booleans of shape"),
        (np.ones((1, 2)), [[T, T]], [[T]], "`reset_mask` must be booleans of shape"),
        (np.ones((1, 2)), [[T, T]], [[F, T]], "`reset_mask` must be True at the first"),
        (np.ones((1, 2)), [[T, F]], [[T, T]], "`reset_mask` must be True at the first"),
        (np.ones((2, 1)), [[T], [T]], [[T], [F]], "`reset_mask` must be True at the"),
    ],
)
def test_masks_that_do_not_fit(outputs, mask, reset_mask, message):
    with pytest.raises(ValueError, match=message):
        unpack(outputs, mask, reset_mask)


def test_masks_without_a_sequence():
    nothing = np.zeros((2, 3), bool)
    assert unpack(np.ones((2, 3, 4)), nothing, nothing) == []
