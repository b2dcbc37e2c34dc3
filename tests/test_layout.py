"""The states of a cell: how many, nested how, and named how."""

import keras
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_init_lstm import InitStateLSTM, InitStateRNN
from oracles import assert_same
from strategies import entries, values


class TestLayout:
    @given(st.lists(entries(3), max_size=4).filter(lambda e: len(e) != 2))
    def test_not_one_entry_per_state(self, entries):
        with pytest.raises(ValueError, match=r"2 states: h0 \(3 units\), c0 \(3 units"):
            InitStateLSTM(3, initial_state=entries)

    @given(st.lists(st.sampled_from(["LSTM", "GRU"]), min_size=2, max_size=3), values)
    def test_one_entry_stands_for_all_the_states_of_a_cell(self, names, value):
        def layer(initial_state):
            cells = [getattr(keras.layers, f"{name}Cell")(2) for name in names]
            return InitStateRNN(cells, initial_state=initial_state)

        spelled_out = layer(
            [[value, value] if name == "LSTM" else value for name in names]
        )
        want = spelled_out.get_initial_state(1)
        for entry in (value, [value] * len(names)):
            assert_same(layer(entry).get_initial_state(1), want)
        assert spelled_out.state_names == tuple(
            f"cell{index}_{state}"
            for index, name in enumerate(names)
            for state in (["h0", "c0"] if name == "LSTM" else ["h0"])
        )
