"""Calls of a fused loop, and the results of a plain loop, which it must equal."""

import keras
import numpy as np
from hypothesis import strategies as st
from keras import ops

import oracles
from backends import BACKEND, LOOP
from keras_init_lstm.loops.call import Call
from strategies import seeds

CELLS = LOOP.cells if LOOP else {}
# A few times the rounding of one operation: the sequences are short.
TOLERANCES = {"float64": 1e-11, "float32": 2e-5}
GATES = {"lstm": 4, "gru": 3, "simple_rnn": 1}
SIZES = (3, 5, 2, 4)  # Rows, timesteps, features and units.
# With everything that the loop has a line of its own for.
RESETS = np.array([[0, 1, 0, 0, 1], [0] * 5, [1, 1, 0, 0, 0]], bool)
MASKED = {
    "mask": np.array([[1, 0, 1, 1, 0], [0] * 5, [1] * 5], bool),
    "reset_mask": RESETS,
    "differs_over_time": True,
}


def make_call(
    cell="lstm",
    sizes=SIZES,
    *,
    dtype="float32",
    seed=0,
    has_bias=True,
    mask=None,
    reset_mask=None,
    differs_over_time=False,
    drops=False,
    **options,
):
    """A `Call` with normal numbers in its tensors.

    Args:
        cell: The kind of the cell.
        sizes: Its `rows, timesteps, features, units`.
        dtype: The dtype of all tensors but the masks.
        seed: Seed of the numbers.
        has_bias: Whether the cell has a bias.
        mask: As in `Call`, but an array.
        reset_mask: As in `Call`, but an array.
        differs_over_time: Whether the states after a reset have a time axis.
        drops: Whether there is dropout, with masks for each gate.
        **options: Other attributes of the call.
    """
    rows, timesteps, features, units = sizes
    gates, rng = GATES[cell], np.random.default_rng(seed)
    count = 2 if cell == "lstm" else 1
    inputs = gates if drops else 1

    def normal(*shape, scale=1.0):
        return ops.convert_to_tensor(rng.normal(size=shape, scale=scale), dtype)

    def flags(array):
        return None if array is None else ops.convert_to_tensor(array, "bool")

    bias_shape = [gates * units]
    if cell == "gru" and options.get("reset_after", True):
        bias_shape = [2, *bias_shape]
    state_shape = (rows, timesteps, units) if differs_over_time else (rows, units)
    after_reset = [] if reset_mask is None else [state_shape] * count
    if drops:
        masks = 2.0 * (rng.random((inputs, rows, units)) < 0.5)
        options["drops_by_gate"] = inputs > 1
        options["recurrent_dropout"] = 0.5
        options["recurrent_masks"] = list(ops.convert_to_tensor(masks, dtype))
    return Call(
        cell=cell,
        sequences=normal(rows, timesteps, inputs * features),
        states=[normal(rows, units) for _ in range(count)],
        kernel=normal(features, gates * units),
        recurrent_kernel=normal(units, gates * units, scale=units**-0.5),
        bias=normal(*bias_shape) if has_bias else None,
        mask=flags(mask),
        reset_mask=flags(reset_mask),
        states_after_reset=[normal(*shape) for shape in after_reset],
        **options,
    )


@st.composite
def masks(draw, shape):
    """Boolean arrays with many, few and no `True`, in runs and alone; or `None`."""
    share = draw(st.sampled_from([None, 0.0, 0.1, 0.5, 0.9, 1.0]))
    if share is None:
        return None
    rng = np.random.default_rng(draw(seeds))
    mask = rng.random(shape) < share
    for row in mask:
        kind = draw(st.sampled_from(["as it is", "none", "all", "left", "right"]))
        if kind in ("none", "all"):
            row[:] = kind == "all"
        elif kind in ("left", "right"):
            row[:] = np.arange(len(row)) >= rng.integers(len(row) + 1)
            row[:] = row if kind == "left" else row[::-1]
    return mask


@st.composite
def calls(draw):
    """Calls that the fused loop of the backend runs."""
    cell, options = CELLS[draw(st.sampled_from(list(CELLS)))]
    # XLA compiles for each number of features and units.
    widths = ([2], [3]) if BACKEND == "tensorflow" else ([1, 2, 3], [1, 2, 3, 4])
    numbers = (range(1, 6), range(1, 12), *widths)
    sizes = tuple(draw(st.sampled_from(choices)) for choices in numbers)
    activation, recurrent_activation = draw(st.sampled_from(LOOP.activations_of(cell)))
    return make_call(
        cell,
        sizes,
        dtype=draw(st.sampled_from(list(TOLERANCES))),
        seed=draw(seeds),
        has_bias=draw(st.booleans()),
        mask=draw(masks(sizes[:2])),
        reset_mask=draw(masks(sizes[:2])),
        differs_over_time=draw(st.booleans()),
        drops=LOOP.drops and draw(st.booleans()),
        activation=activation,
        recurrent_activation=recurrent_activation,
        training=draw(st.booleans()),
        wants_outputs=draw(st.booleans()),
        wants_states=draw(st.booleans()),
        **options,
    )


def tensors_of(call):
    """The tensors of a call that have gradients, by the names of the attributes."""
    names = ("sequences", "states", "states_after_reset", "kernel", "recurrent_kernel")
    tensors = {name: getattr(call, name) for name in names}
    return tensors if call.bias is None else {**tensors, "bias": call.bias}


def with_dtype(call, dtype):
    """The call with copies of its tensors, which have another dtype."""
    values = {**tensors_of(call), "recurrent_masks": call.recurrent_masks}
    return call.replace(
        **keras.tree.map_structure(lambda t: ops.copy(ops.cast(t, dtype)), values)
    )


def flat(results):
    """The tensors in the results of a loop, whose outputs may be `None`."""
    return [t for t in keras.tree.flatten(results) if t is not None]


def gradients(run, call, order=1):
    """The gradients of a loss of the results of `run` by all tensors of a call."""
    call = with_dtype(call, call.sequences.dtype)
    tensors = keras.tree.flatten(tensors_of(call))
    return oracles.gradients(lambda: flat(run(call)), tensors, order)


def assert_close(got, expected, tolerance):
    """Asserts the same shapes, and values up to a tolerance relative to the largest."""
    got, expected = ([_in_float64(t) for t in flat(r)] for r in (got, expected))
    assert [a.shape for a in got] == [a.shape for a in expected]
    for a, b in zip(got, expected, strict=True):
        scale = max(1.0, np.abs(b).max(initial=0))
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


def _in_float64(tensor):
    return oracles.to_numpy(ops.cast(tensor, "float64"))


def plain(call):
    """The results of `run()`, computed by a Python loop."""
    states, outputs = list(call.states), []
    for t in range(call.sequences.shape[1]):
        if call.reset_mask is not None:
            after_reset = [
                s if len(s.shape) == 2 else s[:, t] for s in call.states_after_reset
            ]
            states = _where(call.reset_mask[:, t], after_reset, states)
        after = _step(call, call.sequences[:, t], states)
        if call.mask is not None:
            after = _where(call.mask[:, t], after, states)
        states = after
        outputs.append(states[0])
    return ops.stack(outputs, 1) if call.wants_outputs else None, outputs[-1], states


def _where(condition, values, others):
    pairs = zip(values, others, strict=True)
    return [ops.where(condition[:, None], *pair) for pair in pairs]


def activation_named(name):
    """Keras's activation, or the custom one that is registered with the name."""
    of_keras = getattr(keras.activations, name, None)
    return of_keras or keras.saving.get_registered_object(name)


def _step(call, x, states):
    """One timestep of Keras's cell, computed from its equations."""
    activation = activation_named(call.activation)
    recurrent_activation = activation_named(call.recurrent_activation)
    gates, h = GATES[call.cell], states[0]
    kernels = ops.split(call.kernel, gates, 1)
    recurrent_kernels = ops.split(call.recurrent_kernel, gates, 1)
    xs = ops.split(x, gates, 1) if call.drops_by_gate else [x] * gates
    masks = call.recurrent_masks or [1.0]
    hs = [h * mask for mask in masks] * (gates // len(masks))
    zs = [a @ kernel for a, kernel in zip(xs, kernels, strict=True)]
    inner = [a @ kernel for a, kernel in zip(hs, recurrent_kernels, strict=True)]
    if call.bias is not None:
        biases = ops.reshape(call.bias, (-1, call.bias.shape[-1]))
        zs = [z + b for z, b in zip(zs, ops.split(biases[0], gates), strict=True)]
        if len(biases) > 1:
            pairs = zip(inner, ops.split(biases[1], gates), strict=True)
            inner = [z + b for z, b in pairs]
    if call.cell == "simple_rnn":
        return [activation(zs[0] + inner[0])]
    z, r, *others = (
        recurrent_activation(a + b) for a, b in zip(zs, inner, strict=True)
    )
    if call.cell == "gru":
        inner_new = r * inner[2]
        if not call.reset_after:
            inner_new = (r * hs[2]) @ recurrent_kernels[2]
        return [z * h + (1 - z) * activation(zs[2] + inner_new)]
    i, f, (_, o) = z, r, others
    c = f * states[1] + i * activation(zs[2] + inner[2])
    return [o * activation(c), c]
