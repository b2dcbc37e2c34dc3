"""Layers that own their initial states, in both directions."""

import copy
import sys

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from keras import layers

import keras_init_lstm
from backends import BACKEND
from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    Sampled,
)
from models import BATCH, CONTEXT, TIMESTEPS, UNITS, X, encoder, normal
from oracles import across_programs, assert_same, flat, to_numpy
from strategies import at_most, cases


class TestOfThisPackage:
    @at_most(16)
    @given(
        cases(
            ["conditional"],
            dtypes=["float32"],
            layers=("LSTM", "GRU", "SimpleRNN", "stacked"),
            go_backwards=False,
            dropout=False,
        ),
        st.sampled_from(["concat", "sum", "mul", "ave", None]),
    )
    def test_is_that_of_keras_with_the_states_of_both_directions(self, case, merge):
        assume(case.goes_both_ways)
        layer = InitStateBidirectional(case.layer(), merge)
        outputs = case.call(layer, context=case.context)
        reference = layers.Bidirectional(case.reference(case.layer()), merge)
        reference.build(case.inputs.shape)
        states = []
        for name in ("forward_layer", "backward_layer"):
            ours = getattr(layer, name)
            getattr(reference, name).set_weights(ours.cell.get_weights())
            states += case.states(ours)
        want = case.call(reference, initial_state=states)
        assert_same(outputs, want, case.tolerance)

    def test_each_direction_keeps_the_weights_of_the_given_encoder(self):
        built = encoder()
        built.build((None, 6))
        given = InitStateLSTM(UNITS, initial_state=Conditional(built))
        layer = InitStateBidirectional(given)
        layer(X, context=CONTEXT)
        for direction in (layer.forward_layer, layer.backward_layer):
            for entry in direction.initial_state:
                assert_same(entry.encoder.get_weights(), built.get_weights())

    @pytest.mark.parametrize(
        "states", [5, {}, np.zeros((BATCH, UNITS)), [np.zeros((BATCH, UNITS))] * 2]
    )
    def test_states_that_are_not_one_for_each_of_both_directions(self, states):
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=0.5))
        with pytest.raises(
            ValueError, match="list of 4: forwards h0, c0, then.*Receiv"
        ):
            layer(X, initial_state=states)
        assert not layer.built

    def test_a_backward_layer_of_its_own(self):
        backward = InitStateLSTM(UNITS, initial_state=0.5, go_backwards=True)
        forward = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        layer = InitStateBidirectional(forward, backward_layer=backward)
        got = layer(X, context=CONTEXT)
        want = [layer.forward_layer(X, context=CONTEXT), layer.backward_layer(X)]
        assert_same(got, np.concatenate(flat(want), axis=1))

    def test_without_a_conditional_state_it_is_bidirectional(self):
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=0.5))
        want = [layer.forward_layer(X), layer.backward_layer(X)]
        assert_same(layer(X), np.concatenate(flat(want), axis=1))
        with pytest.raises(ValueError, match="`context` is for"):
            layer(X, context=CONTEXT)

    def test_the_other_kinds_know_whether_it_trains(self):
        start = [Conditional(encoder()), Sampled(0.0, 1.0)]
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=start))
        first, second = flat(
            [layer(X, context=CONTEXT, training=True) for _ in range(2)]
        )
        assert (first != second).all()
        assert_same(layer(X, context=CONTEXT), layer(X, context=CONTEXT))

    def test_missing_context(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        with pytest.raises(ValueError, match="`context` is missing"):
            InitStateBidirectional(layer)(X)
        states = [normal(BATCH, UNITS)] * 4
        bidirectional = InitStateBidirectional(layer)
        got = bidirectional(X, initial_state=states)
        assert_same(got, bidirectional(X, initial_state=states, context=CONTEXT))
        assert (to_numpy(got) != to_numpy(bidirectional(X, context=CONTEXT))).any()

    def test_layers_of_keras_are_refused(self):
        with pytest.raises(ValueError, match="`layer` must be a layer of this package"):
            InitStateBidirectional(layers.LSTM(2))
        with pytest.raises(ValueError, match="`backward_layer` must be"):
            InitStateBidirectional(
                InitStateLSTM(2), backward_layer=layers.LSTM(2, go_backwards=True)
            )


class TestOfKeras:
    @pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
    @pytest.mark.parametrize("return_sequences", [False, True])
    @pytest.mark.parametrize("with_mask", [False, True])
    def test_is_that_around_layers_of_keras(
        self, merge_mode, return_sequences, with_mask
    ):
        arguments = {"return_sequences": return_sequences}
        layer = layers.Bidirectional(
            InitStateLSTM(UNITS, initial_state="trainable", **arguments), merge_mode
        )
        reference = layers.Bidirectional(layers.LSTM(UNITS, **arguments), merge_mode)
        mask = np.arange(TIMESTEPS) < np.arange(BATCH)[:, None] if with_mask else None
        layer(X), reference(X)
        states = normal(4, UNITS)
        layer.forward_layer.assign_initial_state(list(states[:2]))
        layer.backward_layer.assign_initial_state(list(states[2:]))
        for direction in ("forward_layer", "backward_layer"):
            owner, lstm = getattr(layer, direction), getattr(reference, direction)
            lstm.set_weights(owner.cell.get_weights())
        assert len(layer.trainable_weights) == 10
        tiled = [np.tile(s, (BATCH, 1)) for s in states]
        for explicit, handed in ((None, tiled), 2 * [list(normal(4, BATCH, UNITS))]):
            got = layer(X, initial_state=explicit, mask=mask)
            want = reference(X, initial_state=handed, mask=mask)
            assert_same(got, want, across_programs())


# What `keras.layers.Bidirectional` calls.
OF_KERAS = getattr(sys.modules[layers.Bidirectional.__module__], "backend", None)


class TestKerasInOneCall:
    """Keras 3.15 may run both directions in one call of cuDNN, from zeros."""

    @pytest.fixture
    def recorded(self, monkeypatch):
        """The states that each such call was given."""
        calls = []

        def recorder(count):
            def record(_, *arguments, **__):
                calls.append([to_numpy(state) for state in arguments[:count]])
                raise NotImplementedError

            return record

        if not hasattr(OF_KERAS, "bidirectional_lstm"):
            pytest.skip("a Keras without it")
        monkeypatch.setattr(OF_KERAS, "bidirectional_lstm", recorder(4))
        monkeypatch.setattr(OF_KERAS, "bidirectional_gru", recorder(2))
        return calls

    @pytest.mark.skipif(BACKEND == "tensorflow", reason="it always declines there")
    @pytest.mark.parametrize("name", ["LSTM", "GRU"])
    @pytest.mark.parametrize("wrapper", [layers.Bidirectional, InitStateBidirectional])
    def test_drops_no_owned_state(self, recorded, name, wrapper):
        cls = getattr(keras_init_lstm, f"InitState{name}")
        layers.Bidirectional(getattr(layers, name)(UNITS))(X)
        layers.Bidirectional(cls(UNITS))(X)
        assert len(recorded) == 2  # From zeros, which is right.
        layer = wrapper(cls(UNITS, initial_state=0.5))
        got = layer(X)
        assert len(recorded) == 2
        want = [layer.forward_layer(X), layer.backward_layer(X)]
        assert_same(got, np.concatenate(flat(want), axis=1))
        count = 2 * len(layer.forward_layer.state_names)
        layer(X, initial_state=[None] * count)
        states = [normal(BATCH, UNITS) for _ in range(count)]
        layer(X, initial_state=states)
        for call in recorded[2:]:
            assert_same(call, states)

    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
    def test_each_layer_by_itself_may_still_use_cudnn(self, cls, monkeypatch):
        seen = []
        of_keras = cls.keras_layer.inner_loop

        def inner_loop(self, *args, **kwargs):
            seen.append(self.use_cudnn)
            return of_keras(self, *args, **kwargs)

        monkeypatch.setattr(cls.keras_layer, "inner_loop", inner_loop)
        layer = cls(UNITS, initial_state=0.5, use_fused=False)
        layer(X)
        InitStateBidirectional(layer)(X)
        assert seen == ["auto"] * 3
        restored = cls.from_config(layer.get_config())
        assert restored.get_config()["use_cudnn"] == "auto"

    @pytest.mark.parametrize("use_cudnn", ["auto", True, False])
    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
    def test_use_cudnn_reads_as_it_was_set(self, cls, use_cudnn):
        layer = cls(UNITS, initial_state=0.5, use_cudnn=use_cudnn)
        wrapper = layers.Bidirectional(layer)
        copies = [
            wrapper.forward_layer,
            wrapper.backward_layer,
            cls.from_config(layer.get_config()),
            cls.from_keras(layer),
            copy.deepcopy(layer),
        ]
        for each in (layer, *copies):
            assert each.use_cudnn == use_cudnn
        for value in (False, True, "auto"):
            layer.use_cudnn = value
            assert layer.use_cudnn == value
            assert layer.get_config()["use_cudnn"] == value

    @pytest.mark.tensorflow
    def test_on_tensorflow_it_always_declines(self):
        for name in ("bidirectional_lstm", "bidirectional_gru"):
            if hasattr(OF_KERAS, name):
                with pytest.raises(NotImplementedError):
                    getattr(OF_KERAS, name)(X, *[None] * 12)
