"""Gradients of the fused loop, compared with the gradients of Keras's layers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from loop_cases import batch, gradients_by_weights_and_inputs
from models import FEATURES, UNITS, normal
from oracles import assert_same, gradients, reference_of, scale_of, tiled_states
from strategies import FUSIBLE, at_most, cases

pytestmark = pytest.mark.tensorflow


class TestGradients:
    @at_most(15)  # Each differentiates twice, through a plain loop.
    @given(
        cases(
            kinds=("zeros", "fixed", "trainable"),
            dtypes=["float64"],
            layers=FUSIBLE,
            use_fused=True,
        ),
        st.booleans(),
    )
    def test_second_order_gradients_equal_keras(self, case, training):
        layer = case.layer()
        states = [tf.constant(s) for s in tiled_states(layer, case.batch)]
        names = ("activation", "recurrent_activation")
        # TensorFlow has no second derivative of softsign.
        has_no_second = "softsign" in map(case.arguments.get, names)
        call = {"mask": case.mask, "training": training}
        call["order"] = 1 if has_no_second else 2
        got = gradients_by_weights_and_inputs(layer, case.inputs, **call)
        reference = case.reference(layer)
        want = gradients_by_weights_and_inputs(reference, case.inputs, states, **call)
        assert_same(got, want, tolerance=1e-9 * scale_of(want))

    @pytest.mark.parametrize(
        ("make", "options"),
        [
            (InitStateLSTM, {"dropout": 0.3}),
            (InitStateGRU, {"dropout": 0.3}),
            (InitStateGRU, {"reset_after": False}),
            (InitStateSimpleRNN, {"dropout": 0.3}),
        ],
        ids=str,
    )
    def test_with_recurrent_dropout_equal_keras(self, make, options):
        options = {"dtype": "float64", "seed": 1, "recurrent_dropout": 0.5, **options}
        x, call = batch(timesteps=4), {"training": True, "order": 2}
        layer = make(UNITS, use_fused=True, return_sequences=True, **options)
        layer.build(x.shape)
        reference = reference_of(layer, return_sequences=True, **options)
        got, want = (
            gradients_by_weights_and_inputs(e, x, **call) for e in (layer, reference)
        )
        assert_same(got, want, tolerance=1e-9 * scale_of(want))

    # For each activation what its argument is at the kinks.
    @pytest.mark.parametrize(
        ("activation", "kinks"),
        [("relu", [0]), ("hard_sigmoid", [-3, 3]), ("hard_tanh", [-1, 1])],
    )
    @pytest.mark.parametrize(
        ("make", "role"),
        [
            (InitStateLSTM, "activation"),
            (InitStateLSTM, "recurrent_activation"),
            (InitStateGRU, "activation"),
            (InitStateGRU, "recurrent_activation"),
            (InitStateSimpleRNN, "activation"),
        ],
    )
    def test_at_the_kinks_equal_keras(self, make, role, activation, kinks):
        options = {role: activation, "return_state": True, "dtype": "float64"}
        units, x = len(kinks), normal(1, 2, FEATURES)
        layer = make(units, use_fused=True, initial_state=0.5, **options)
        layer.build(x.shape)
        bias = np.zeros(layer.cell.bias.shape)
        gates = bias.reshape(-1, layer.cell.kernel.shape[1] // units, units)
        is_of_role = np.arange(gates.shape[1]) == min(2, gates.shape[1] - 1)
        if role == "recurrent_activation":
            gates[:, is_of_role] = 1  # That the others make a difference.
            is_of_role = ~is_of_role
        gates[0, is_of_role] = kinks
        layer.cell.set_weights([0 * w for w in layer.cell.get_weights()[:2]] + [bias])
        reference, found = reference_of(layer, **options), []
        states = [tf.constant(s) for s in tiled_states(layer, 1)]
        for each, kwargs in ((layer, {}), (reference, {"initial_state": states})):

            def call(each=each, kwargs=kwargs):
                return [1 + y for y in each(x.astype("float64"), **kwargs)]

            weights = [weight.value for weight in each.cell.weights]
            found.append(gradients(call, weights, order=2))
        assert_same(*found, tolerance=1e-12)

    def test_are_finite_where_padding_would_not_be(self):
        x, options = -np.ones((9, 64, FEATURES)), {"activation": "relu"}
        layer = InitStateSimpleRNN(UNITS, use_fused=True, **options)
        layer.build(x.shape)
        weights = [np.ones((FEATURES, UNITS)), 8 * np.eye(UNITS), np.ones(UNITS)]
        layer.cell.set_weights(weights)
        reference = reference_of(layer, **options)
        call = {"training": True}
        found = [
            gradients_by_weights_and_inputs(each, x, **call)
            for each in (layer, reference)
        ]
        assert_same(*found)
