"""The states of a cell: their number, nesting and names."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keras_init_lstm import Fixed, InitStateGRU, InitStateLSTM, InitStateRNN
from keras_init_lstm.initial_states.layout import StateLayout
from oracles import assert_same
from strategies import entries, values


class TestLayout:
    @pytest.mark.parametrize("given", [[0.5, 0.25], (1, 2)])
    def test_numbers_for_the_states_or_for_the_units(self, given):
        with pytest.raises(ValueError, match=r"2 states, or .* 2 units.*Fixed.*array"):
            InitStateLSTM(2, initial_state=given)
        cells = [keras.layers.LSTMCell(2), keras.layers.GRUCell(3)]
        with pytest.raises(ValueError, match=r"2 states, or .* 2 units"):
            InitStateRNN(cells, initial_state=[given, None])
        per_unit = InitStateLSTM(2, initial_state=np.array(given))
        want = [np.array([given], "float32")] * 2
        assert_same(per_unit.get_initial_state(1), want)
        per_state = InitStateLSTM(2, initial_state=[Fixed(value) for value in given])
        want = [np.full((1, 2), value, "float32") for value in given]
        assert_same(per_state.get_initial_state(1), want)
        # With another number of units or entries, the meaning is clear.
        InitStateLSTM(3, initial_state=given)
        InitStateLSTM(2, initial_state=[given[0], None])

    def test_a_list_for_one_state(self):
        message = r"entry for the one state: h0 \(2 units\) .*pass an array"
        with pytest.raises(ValueError, match=message):
            InitStateGRU(2, initial_state=[0.5, 0.25])

    @given(st.lists(entries(3), max_size=4).filter(lambda e: len(e) != 2))
    def test_not_one_entry_per_state(self, entries):
        with pytest.raises(ValueError, match=r"2 states: h0 \(3 units\), c0 \(3 units"):
            InitStateLSTM(3, initial_state=entries)

    @given(st.lists(st.sampled_from(["LSTM", "GRU"]), min_size=2, max_size=3), values)
    def test_one_entry_for_all_the_states_of_a_cell(self, names, value):
        def layer(initial_state):
            cells = [getattr(keras.layers, f"{name}Cell")(4) for name in names]
            return InitStateRNN(cells, initial_state=initial_state)

        entry = Fixed(value)  # Two numbers could be meant for two units.
        spelled_out = layer(
            [[entry, entry] if name == "LSTM" else entry for name in names]
        )
        want = spelled_out.get_initial_state(1)
        for one in (entry, [entry] * len(names)):
            assert_same(layer(one).get_initial_state(1), want)
        assert spelled_out.state_units == tuple(
            4 for name in names for _ in range(2 if name == "LSTM" else 1)
        )
        assert spelled_out.state_names == tuple(
            f"cell{index}_{state}"
            for index, name in enumerate(names)
            for state in (["h0", "c0"] if name == "LSTM" else ["h0"])
        )


class TestLayoutOfConvLSTM:
    @given(
        st.integers(1, 3),
        st.sampled_from(["channels_last", "channels_first"]),
        st.sampled_from(["valid", "same"]),
        st.sampled_from([{}, {"strides": 2}, {"dilation_rate": 2}]),
    )
    def test_the_space_follows_from_the_convolution(
        self, rank, data_format, padding, kwargs
    ):
        kwargs = {"padding": padding, "data_format": data_format, **kwargs}
        layer = getattr(keras.layers, f"ConvLSTM{rank}D")(
            4, 2, return_state=True, **kwargs
        )
        space = (5, 6, 7)[:rank]
        channels_first = data_format == "channels_first"
        shape = (2, 3, 1, *space) if channels_first else (2, 3, *space, 1)
        _, *wanted = layer.compute_output_shape(shape)
        unknown = StateLayout.of(layer)
        assert unknown.names == ("h0", "c0")
        assert unknown.state_size == [4, 4]
        assert [state.shape.count(None) for state in unknown.states] == [rank] * 2
        layouts = [StateLayout.of(layer, shape)]
        layer.build(shape)
        layouts.append(StateLayout.of(layer))
        for layout in layouts:
            assert [(2, *state.shape) for state in layout.states] == wanted
            assert [state.units for state in layout.states] == [4, 4]
