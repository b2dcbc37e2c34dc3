"""The fused loop of each backend, compared with a plain loop in float64."""

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keras import ops

from backends import BACKEND, FUSES, LOOP
from keras_init_lstm.loops import _loop as loop
from loop_calls import (
    CELLS,
    MASKED,
    TOLERANCES,
    assert_close,
    calls,
    flat,
    gradients,
    make_call,
    plain,
    with_dtype,
)
from strategies import at_most

if not FUSES:
    pytest.skip("a backend without a fused loop", allow_module_level=True)

# TensorFlow has no second derivative of softsign.
HAS_NO_SECOND = {"softsign"}


def with_nan_where_nothing_is_read(call):
    """The call with NaN in all values that must not be read."""
    sequences, after_reset = call.sequences, call.states_after_reset
    if call.mask is not None and not LOOP.reads_masked:
        sequences = ops.where(call.mask[:, :, None], sequences, np.nan)
    if call.reset_mask is not None:
        resets = call.reset_mask[:, :, None]
        after_reset = [
            s if len(s.shape) == 2 else ops.where(resets, s, np.nan)
            for s in after_reset
        ]
    return call.replace(sequences=sequences, states_after_reset=after_reset)


def wanted(run):
    """The function `run` without last states that are not wanted."""

    def results(call):
        outputs, last_output, states = run(call)
        return outputs, last_output, states if call.wants_states else []

    return results


@at_most(15)  # XLA compiles two programs for most examples.
@given(calls(), st.sampled_from([1, 1, 2]))
def test_results_and_gradients_equal_the_plain_loop(call, order):
    dtype = keras.backend.standardize_dtype(call.sequences.dtype)
    tolerance = TOLERANCES[dtype]
    if HAS_NO_SECOND & {call.activation, call.recurrent_activation}:
        order = 1
    exact = with_dtype(call, "float64")
    call = with_nan_where_nothing_is_read(call)
    loop.check(call)
    outputs, *_ = results = wanted(loop.run)(call)
    assert (outputs is not None) == call.wants_outputs
    assert {keras.backend.standardize_dtype(t.dtype) for t in flat(results)} == {dtype}
    assert_close(results, wanted(plain)(exact), tolerance)
    found = gradients(wanted(loop.run), call, order)
    assert_close(found, gradients(wanted(plain), exact, order), 20 * tolerance)


@pytest.mark.parametrize("activations", sorted(set(LOOP.activations)), ids=str)
def test_each_pair_of_activations_equals_the_plain_loop(activations):
    activation, recurrent_activation = activations
    call = make_call(
        dtype="float64",
        activation=activation,
        recurrent_activation=recurrent_activation,
        training=True,
    )
    assert_close(loop.run(call), plain(call), TOLERANCES["float64"])
    found = gradients(loop.run, call)
    assert_close(found, gradients(plain, call), 20 * TOLERANCES["float64"])


@pytest.mark.parametrize("activation", ["tanh", "sigmoid", "hard_tanh"])
@pytest.mark.parametrize("cell", CELLS)
def test_the_plain_loop_equals_keras(cell, activation):
    name, options = CELLS[cell]
    call = make_call(name, mask=MASKED["mask"], activation=activation, **options)
    layer_class = {"lstm": "LSTM", "gru": "GRU", "simple_rnn": "SimpleRNN"}[name]
    options = {**options, "activation": activation, "return_state": True}
    layer = getattr(keras.layers, layer_class)(4, **options)
    layer.build(call.sequences.shape)
    layer.set_weights([call.kernel, call.recurrent_kernel, call.bias])
    # Not the outputs: Keras has zeros where no timestep was read.
    _, *states = layer(call.sequences, mask=call.mask, initial_state=call.states)
    assert_close(plain(call)[2], states, 1e-5)


# TensorFlow's cells have the same operations for all dtypes.
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cell", CELLS if BACKEND == "torch" else ["lstm"])
def test_16_bits(cell, dtype):
    name, options = CELLS[cell]
    call = make_call(name, dtype=dtype, mask=MASKED["mask"], **options)
    loop.check(call)
    exact = with_dtype(call, "float64")
    results = loop.run(call)
    assert {keras.backend.standardize_dtype(t.dtype) for t in flat(results)} == {dtype}
    assert_close(results, plain(exact), 0.03)
    assert_close(gradients(loop.run, call), gradients(plain, exact), 0.1)
