"""`Bidirectional` around layers that own their initial states."""

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


class TestInitStateBidirectional:
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
    def test_equals_keras_with_explicit_states_of_both_directions(self, case, merge):
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
    def test_a_wrong_number_of_states_raises(self, states):
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=0.5))
        with pytest.raises(
            ValueError, match="list of 4: forwards h0, c0, then.*Receiv"
        ):
            layer(X, initial_state=states)
        assert not layer.built

    def test_a_custom_backward_layer(self):
        backward = InitStateLSTM(UNITS, initial_state=0.5, go_backwards=True)
        forward = InitStateLSTM(UNITS, initial_state=Conditional(encoder()))
        layer = InitStateBidirectional(forward, backward_layer=backward)
        got = layer(X, context=CONTEXT)
        want = [layer.forward_layer(X, context=CONTEXT), layer.backward_layer(X)]
        assert_same(got, np.concatenate(flat(want), axis=1))

    def test_without_a_conditional_state_equals_bidirectional(self):
        layer = InitStateBidirectional(InitStateLSTM(UNITS, initial_state=0.5))
        want = [layer.forward_layer(X), layer.backward_layer(X)]
        assert_same(layer(X), np.concatenate(flat(want), axis=1))
        with pytest.raises(ValueError, match="`context` is for"):
            layer(X, context=CONTEXT)

    def test_other_kinds_get_the_training_flag(self):
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

    def test_layers_of_keras_raise(self):
        with pytest.raises(ValueError, match="`layer` must be a layer of this package"):
            InitStateBidirectional(layers.LSTM(2))
        with pytest.raises(ValueError, match="`backward_layer` must be"):
            InitStateBidirectional(
                InitStateLSTM(2), backward_layer=layers.LSTM(2, go_backwards=True)
            )


class TestKerasBidirectional:
    @pytest.mark.parametrize("merge_mode", ["concat", "sum", None])
    @pytest.mark.parametrize("return_sequences", [False, True])
    @pytest.mark.parametrize("with_mask", [False, True])
    def test_equals_bidirectional_around_layers_of_keras(
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


# The module whose functions `keras.layers.Bidirectional` calls.
KERAS_BACKEND = getattr(sys.modules[layers.Bidirectional.__module__], "backend", None)


class TestBothDirectionsInOneCall:
    """Keras 3.15 may run both directions in one call of cuDNN from zeros."""

    @pytest.fixture
    def recorded(self, monkeypatch):
        """The states of each of these calls."""
        calls = []

        def recorder(count):
            def record(_, *arguments, **__):
                calls.append([to_numpy(state) for state in arguments[:count]])
                raise NotImplementedError

            return record

        if not hasattr(KERAS_BACKEND, "bidirectional_lstm"):
            pytest.skip("a Keras without it")
        monkeypatch.setattr(KERAS_BACKEND, "bidirectional_lstm", recorder(4))
        monkeypatch.setattr(KERAS_BACKEND, "bidirectional_gru", recorder(2))
        return calls

    @pytest.mark.skipif(BACKEND == "tensorflow", reason="it always declines there")
    @pytest.mark.parametrize("name", ["LSTM", "GRU"])
    @pytest.mark.parametrize("wrapper", [layers.Bidirectional, InitStateBidirectional])
    def test_keeps_the_owned_states(self, recorded, name, wrapper):
        cls = getattr(keras_init_lstm, f"InitState{name}")
        layers.Bidirectional(getattr(layers, name)(UNITS))(X)
        layers.Bidirectional(cls(UNITS))(X)
        assert len(recorded) == 2  # These layers start from zeros.
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
    def test_each_direction_may_use_cudnn(self, cls, monkeypatch):
        seen = []
        keras_loop = cls.keras_layer.inner_loop

        def inner_loop(self, *args, **kwargs):
            seen.append(self.use_cudnn)
            return keras_loop(self, *args, **kwargs)

        monkeypatch.setattr(cls.keras_layer, "inner_loop", inner_loop)
        layer = cls(UNITS, initial_state=0.5, use_fused=False)
        layer(X)
        InitStateBidirectional(layer)(X)
        assert seen == ["auto"] * 3
        restored = cls.from_config(layer.get_config())
        assert restored.get_config()["use_cudnn"] == "auto"

    @pytest.mark.parametrize("use_cudnn", ["auto", True, False])
    @pytest.mark.parametrize("cls", [InitStateLSTM, InitStateGRU])
    def test_use_cudnn_returns_what_was_set(self, cls, use_cudnn):
        layer = cls(UNITS, initial_state=0.5, use_cudnn=use_cudnn)
        wrapper = layers.Bidirectional(layer)
        copies = [
            wrapper.forward_layer,
            wrapper.backward_layer,
            cls.from_config(layer.get_config()),
            cls.from_keras(layer),
            copy.deepcopy(layer),
        ]
        for copied in (layer, *copies):
            assert copied.use_cudnn == use_cudnn
        for value in (False, True, "auto"):
            layer.use_cudnn = value
            assert layer.use_cudnn == value
            assert layer.get_config()["use_cudnn"] == value

    @pytest.mark.tensorflow
    def test_tensorflow_never_runs_one_call(self):
        for name in ("bidirectional_lstm", "bidirectional_gru"):
            if hasattr(KERAS_BACKEND, name):
                with pytest.raises(NotImplementedError):
                    getattr(KERAS_BACKEND, name)(X, *[None] * 12)
