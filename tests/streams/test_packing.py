"""Sequences that are packed one after another into the rows of an array."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_init_lstm import InitStateLSTM
from keras_init_lstm.streams import pack
from models import normal
from oracles import assert_same, flat


@given(st.lists(st.integers(1, 6), min_size=1, max_size=12), st.integers(6, 15))
def test_rows_hold_every_sequence_once_in_order(lengths, timesteps):
    sequences = [normal(length, 2, seed=k) for k, length in enumerate(lengths)]
    packed, mask, reset_mask = pack(sequences, timesteps)
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
    # Targets of each timestep get the same positions.
    targets, *_ = pack([np.full(n, k) for k, n in enumerate(lengths)], timesteps)
    assert (np.repeat(np.arange(len(lengths)), lengths) == targets[mask]).all()


def test_a_layer_reads_each_sequence_as_if_alone():
    sequences = [normal(length, 3, seed=length) for length in (4, 2, 7, 1, 5)]
    x, mask, reset_mask = pack(sequences, 8)
    layer = InitStateLSTM(2, initial_state=0.5, return_sequences=True)
    outputs = flat(layer(x, mask=mask, reset_mask=reset_mask))[0]
    alone = [flat(layer(sequence[None]))[0][0] for sequence in sequences]
    assert_same(outputs[mask], np.concatenate(alone), 1e-6)


@pytest.mark.parametrize(
    ("sequences", "timesteps", "message"),
    [
        ([], 5, "`sequences` must be a list of at least one"),
        ([[1, 2], []], 5, r"`sequences\[1\]` .* from 1 to timesteps=5"),
        ([[1, 2], [1] * 6], 5, r"`sequences\[1\]` .* from 1 to timesteps=5"),
        ([[[1, 2]], [[1]]], 5, r"`sequences\[1\]` .* \(length, 2\)"),
        ([[1], 2], 5, r"`sequences\[1\]`"),
        ([[1], [[1], [1, 2]]], 5, r"`sequences\[1\]`"),
        ([["a"]], 5, r"`sequences\[0\]` must be an array of numbers"),
        ([[1]], 0, "`timesteps` must be a positive integer"),
        ([[1]], True, "`timesteps` must be a positive integer"),
        ([[1]], 2.0, "`timesteps` must be a positive integer"),
        (3, 5, "`sequences` must be a list of at least one"),
        (np.array(3), 5, "`sequences` must be a list of at least one"),
        ({1: [1]}, 5, "`sequences` must be a list of at least one"),
        ({1: []}.values(), 5, r"`sequences\[0\]` must be an array of numbers"),
        ([[1.0], np.array(["2020"], "datetime64[Y]")], 5, r"`sequences\[1\]`"),
    ],
)
def test_invalid_arguments(sequences, timesteps, message):
    with pytest.raises(ValueError, match=message):
        pack(sequences, timesteps)
