"""Masks, sequences and states of the fused loop, of any shape, dtype and class."""

import keras
import numpy as np
import pytest

from backends import FUSES, compiled, tf
from keras_init_lstm import InitStateLSTM
from loop_cases import TIMESTEPS, batch, outcome
from models import FEATURES, UNITS, normal
from oracles import assert_same, reference_of, to_numpy

if not FUSES:
    pytest.skip("a backend without a fused loop", allow_module_level=True)


@pytest.mark.parametrize("in_graph", [False, True] if tf else [False])
@pytest.mark.parametrize(
    "shape",
    [
        (4, TIMESTEPS),
        (4, TIMESTEPS, 1),
        (4, TIMESTEPS, UNITS),
        (1, TIMESTEPS),
        (3, TIMESTEPS),
        (4, TIMESTEPS - 2),
        (4, TIMESTEPS + 2),
        (4, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [4, 1])
def test_a_mask_of_any_shape_does_what_it_does_to_lstm(shape, in_graph, rows):
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    layer.build((4, TIMESTEPS, FEATURES))
    mask = np.random.default_rng(1).random(shape) < 0.6
    outcomes = []
    for each in (layer, reference_of(layer)):
        states = (
            {} if each is layer else {"initial_state": layer.get_initial_state(rows)}
        )

        def call(x, mask, each=each, states=states):
            return each(x, mask=mask, training=True, **states)

        call = compiled(call) if in_graph else call
        outcomes.append(outcome(lambda call=call: call(batch(rows), mask)))
    got, want = outcomes
    if isinstance(want, type):
        assert got is want
    else:
        assert_same(got, want, tolerance=1e-6)


def test_nearly_closed_gates_are_exact_to_rounding():
    layer = InitStateLSTM(1, bias_initializer=keras.initializers.Constant(-12))
    layer.build((None, TIMESTEPS, FEATURES))
    kernel, recurrent_kernel, bias = layer.get_weights()
    bias[1:] = 0
    layer.set_weights([0 * kernel + [0, 0, 1, 0], 0 * recurrent_kernel, bias])
    x = np.ones((1, TIMESTEPS, FEATURES), "float32")
    got, want = (
        to_numpy(each(x, training=True)) for each in (layer, reference_of(layer))
    )
    assert 0 < want < 1e-5
    assert_same(got, want, tolerance=2e-7)


def test_sequences_in_a_variable():
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    assert_same(layer(keras.Variable(batch())), layer(batch()))


def test_a_mask_of_integers():
    layer = InitStateLSTM(UNITS, initial_state=0.5, use_fused=True)
    mask = np.arange(TIMESTEPS) < np.array([[3], [0], [TIMESTEPS], [7]])
    assert_same(layer(batch(), mask=mask.astype("int32")), layer(batch(), mask=mask))


def test_explicit_states_may_be_variables():
    layer = InitStateLSTM(2, use_fused=True)
    x, states = normal(3, 9, 4), [normal(3, 2), normal(3, 2, seed=1)]
    want = layer(x, initial_state=states)
    if tf:
        assert_same(layer(x, initial_state=list(map(tf.Variable, states))), want)
    given = list(map(keras.Variable, states))
    assert_same(layer(x, initial_state=[state.value for state in given]), want)
