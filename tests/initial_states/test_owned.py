"""The initial states that a layer owns: their weights and their values."""

import keras
import numpy as np
import pytest
from hypothesis import strategies as st

from backends import FLOAT64, tf
from keras_init_lstm import Conditional, Fixed, InitStateLSTM, Sampled, Trainable
from keras_init_lstm.initial_states.base import InitialState
from models import CONTEXT, X, encoder, sampled
from oracles import assert_same, nested, owned_values
from strategies import arrays, for_each_layer


class TestOwnership:
    def test_each_state_owns_its_variables_and_names_them(self):
        given_twice = Trainable("ones")
        layer = InitStateLSTM(3, initial_state=given_twice, name="lstm")
        layer.build((None, None, 2))
        assert [w.path for w in layer.weights[3:]] == ["lstm/h0/value", "lstm/c0/value"]
        assert given_twice not in layer.initial_state
        other = InitStateLSTM(2, initial_state=[given_twice, given_twice])
        other.build((None, None, 2))
        assert len({id(w) for w in layer.weights + other.weights}) == 10

    def test_states_built_before_the_layer_have_the_same_names(self):
        layer = InitStateLSTM(3, initial_state=[Trainable("ones"), 0.5], name="lstm")
        assert_same(
            layer.get_initial_state(2),
            [np.ones((2, 3), "f"), np.full((2, 3), 0.5, "f")],
        )
        layer.assign_initial_state([np.full(3, 2.0), None])
        layer.build((None, None, 2))
        assert [w.path for w in layer.weights[3:]] == ["lstm/h0/value", "lstm/c0/value"]
        assert_same(
            layer.get_initial_state(1),
            [np.full((1, 3), 2, "f"), np.full((1, 3), 0.5, "f")],
        )

    @pytest.mark.parametrize(
        "dtype",
        [
            "float32",
            FLOAT64,
            "mixed_bfloat16",
            "mixed_float16",
            "float16",
            "bfloat16",
        ],
    )
    @pytest.mark.parametrize("kind", ["fixed", "sampled", "trainable"])
    def test_variables_have_the_dtype_of_the_layer(self, kind, dtype):
        layer = InitStateLSTM(
            3,
            initial_state=kind,
            dtype=dtype,
            recurrent_initializer="zeros",  # the default cannot make bfloat16
        )
        layer.build((None, None, 2))
        assert {w.dtype for w in layer.weights} == {layer.variable_dtype}
        outputs = layer(np.zeros((2, 4, 2)), training=True)
        assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
        states = layer.get_initial_state(2)
        assert keras.backend.standardize_dtype(states[0].dtype) == layer.compute_dtype

    def test_the_message_about_an_entry_names_its_state(self):
        with pytest.raises(ValueError, match="`initial_state`, for c0: .*shape"):
            InitStateLSTM(8, initial_state=[0.0, np.zeros((1, 8))])


class TestFreezing:
    def test_trainable_can_be_switched(self):
        layer = InitStateLSTM(3, initial_state=[Trainable(), sampled(learned=True)])
        layer.build((None, None, 2))
        assert len(layer.trainable_weights) == 6
        layer.initial_state[0].trainable = False
        assert len(layer.trainable_weights) == 5
        restored = InitStateLSTM.from_config(layer.get_config())
        restored.build((None, None, 2))
        assert [w.path.split("/")[1:] for w in restored.trainable_weights[3:]] == [
            ["c0", "mean"],
            ["c0", "stddev"],
        ]
        layer.trainable = False
        assert not layer.trainable_weights
        layer.trainable = True
        assert len(layer.trainable_weights) == 6

    def test_a_frozen_layer_has_frozen_states(self):
        layer = InitStateLSTM(3, initial_state="trainable", trainable=False)
        layer.build((None, None, 2))
        assert not layer.trainable_weights
        assert not layer.initial_state[0].trainable
        layer.trainable = True
        assert len(layer.trainable_weights) == 5

    def test_unfreezing_a_model_keeps_fixed_states_fixed(self):
        layer = InitStateLSTM(3, initial_state=[Fixed(), Sampled()])
        layer.build((None, None, 2))
        layer.trainable = False
        layer.trainable = True
        assert len(layer.trainable_weights) == 3


class TestAssign:
    @for_each_layer(("fixed", "sampled", "trainable"))
    def test_assigns_the_value_or_the_mean_over_the_batch(self, case, data):
        layer = case.layer()
        reduction = data.draw(st.sampled_from([None, "mean"]))
        given = [
            data.draw(st.none() | arrays(units) | arrays(case.batch, units))
            for units in layer.state_units
        ]
        before = owned_values(layer)
        states = nested(layer, given)
        if data.draw(st.booleans()):
            states = dict(zip(layer.state_names, given, strict=True))
        if reduction is None and any(np.ndim(value) == 2 for value in given):
            message = r"`states\[\d\]`.* pass `reduction='mean'`. Received: .* shape \("
            with pytest.raises(ValueError, match=message):
                layer.assign_initial_state(states)
            assert_same(owned_values(layer), before)
            return
        layer.assign_initial_state(states, reduction)
        for got, value, old in zip(owned_values(layer), given, before, strict=True):
            if value is None:
                want = old
            else:
                want = value if value.ndim == 1 else value.mean(axis=0)
            np.testing.assert_array_equal(got, np.asarray(want, got.dtype))
        want = case.call(case.reference(layer), initial_state=case.states(layer))
        case.assert_same(case.call(layer), want)

    @pytest.mark.parametrize("reduction", ["sum", True, 0])
    def test_an_invalid_reduction(self, reduction):
        layer = InitStateLSTM(3, initial_state="trainable")
        with pytest.raises(ValueError, match="`reduction` must be one of"):
            layer.assign_initial_state([np.ones((2, 3)), None], reduction)

    def test_zeros_are_not_owned(self):
        layer = InitStateLSTM(3, initial_state=["trainable", None])
        with pytest.raises(ValueError, match="no value of c0"):
            layer.assign_initial_state([np.ones(3), np.ones(3)])
        assert_same(layer.get_initial_state(1), [np.zeros((1, 3), "f")] * 2)
        layer.assign_initial_state([np.ones(3), None])
        assert float(layer.get_initial_state(1)[0][0, 0]) == 1

    def test_a_kind_without_a_value_has_nothing_to_assign(self):
        class Zeros(InitialState):
            def call(self, batch_size, training=False):
                return keras.ops.zeros((batch_size, self.units))

        layer = InitStateLSTM(3, initial_state=[Zeros(), None])
        assert_same(layer.get_initial_state(2)[0], np.zeros((2, 3), "float32"))
        with pytest.raises(ValueError, match="owns no value of h0 to assign to"):
            layer.assign_initial_state([np.ones(3), None])

    @pytest.mark.tensorflow
    def test_the_error_for_symbolic_tensors(self):
        layer = InitStateLSTM(2, initial_state="trainable", stateful=True)

        for method in (layer.assign_initial_state, layer.reset_states):
            call = tf.function(lambda state, method=method: method([state, state]))
            with pytest.raises(ValueError, match=r"`states\[0\]`.*symbolic tensor"):
                call(tf.ones((3, 2)))


def test_kinds_of_a_trained_layer_are_copied_untrained():
    trained = InitStateLSTM(
        2, initial_state=[Trainable("ones"), Conditional(encoder())]
    )
    trained(X, context=CONTEXT)
    h0, c0 = trained.initial_state
    h0.value.assign([5.0, 6.0])
    layer = InitStateLSTM(2, initial_state=trained.initial_state)
    h, c = layer.get_initial_state(len(X), context=CONTEXT)
    assert_same(h, np.ones((len(X), 2), "float32"))
    assert_same(c, c0.encoder(CONTEXT))
    copied = InitStateLSTM.from_keras(trained)
    h, c = copied.get_initial_state(len(X), context=CONTEXT)
    assert_same(h, np.tile(np.array([5, 6], "float32"), (len(X), 1)))
    assert_same(c, c0.encoder(CONTEXT))
