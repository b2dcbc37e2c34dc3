"""Second derivatives of the fused loop of each backend, also where they jump."""

import numpy as np
import pytest
from keras import ops

from backends import FUSES, LOOP
from keras_init_lstm import InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.loops import _loop as loop
from loop_calls import CELLS, GATES, MASKED, assert_close, gradients, make_call, plain
from loop_cases import batch, gradients_by_weights_and_inputs
from models import UNITS
from oracles import assert_same, reference_of, scale_of

if not FUSES:
    pytest.skip("a backend without a fused loop", allow_module_level=True)

OPTIONS = {"all read": {}, "masked": {**MASKED, "training": True, "drops": LOOP.drops}}


@pytest.mark.parametrize("of", OPTIONS)
@pytest.mark.parametrize("cell", CELLS)
def test_second_derivatives(cell, of):
    name, options = CELLS[cell]
    call = make_call(name, dtype="float64", **options, **OPTIONS[of])
    found = gradients(loop.run, call, order=2)
    assert_close(found, gradients(plain, call, order=2), 2e-10)


@pytest.mark.skipif(not LOOP.drops, reason="the loop runs no recurrent dropout")
@pytest.mark.parametrize("make", [InitStateLSTM, InitStateSimpleRNN])
def test_second_derivatives_through_the_masks_that_keras_draws(make):
    options = {"dtype": "float64", "seed": 1, "dropout": 0.3, "recurrent_dropout": 0.5}
    options["return_sequences"] = True
    x, call = batch(timesteps=4), {"training": True, "order": 2}
    layer = make(UNITS, use_fused=True, **options)
    layer.build(x.shape)
    both = (layer, reference_of(layer, **options))
    got, want = (gradients_by_weights_and_inputs(each, x, **call) for each in both)
    assert_same(got, want, tolerance=1e-9 * scale_of(want))


# For each activation what its argument is at the kinks.
OF_KERAS2 = "keras_init_lstm>hard_sigmoid_of_keras2"
KINKS = {
    "relu": [0],
    "hard_sigmoid": [-3, 3],
    OF_KERAS2: [-2.5, 2.5],
    "hard_tanh": [-1, 1],
}
PAIRS = [
    ("relu", "hard_sigmoid"),
    ("hard_sigmoid", "hard_tanh"),
    ("hard_tanh", "relu"),
    ("hard_tanh", OF_KERAS2),
]

AT_KINKS = [(c, pair) for c in GATES for pair in PAIRS if LOOP.runs(c, *pair)]


@pytest.mark.parametrize(("cell", "activations"), AT_KINKS, ids=str)
def test_derivatives_at_the_kinks(cell, activations):
    of_state, of_gates = map(KINKS.get, activations)
    units = len(of_state) + len(of_gates)
    # Away from the kinks, all gates are open, so that each makes a difference.
    bias = np.full((GATES[cell], units), 0.5)
    state_gate = min(2, GATES[cell] - 1)
    bias[state_gate, : len(of_state)] = of_state
    bias[np.arange(GATES[cell]) != state_gate, len(of_state) :] = of_gates
    call = make_call(
        cell,
        (1, 2, 3, units),
        dtype="float64",
        activation=activations[0],
        recurrent_activation=activations[1],
    )
    bias = bias.reshape(-1)
    if cell == "gru":
        bias = np.stack([bias, np.zeros_like(bias)])
    call = call.replace(
        kernel=0 * call.kernel,
        recurrent_kernel=0 * call.recurrent_kernel,
        bias=ops.convert_to_tensor(bias, "float64"),
    )
    found = [gradients(run, call, order=2) for run in (loop.run, plain)]
    assert_close(*found, 1e-12)
