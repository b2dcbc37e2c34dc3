"""What the layers are checked against, none of it made by the package."""

import itertools

import keras
import numpy as np

from backends import BACKEND, tf

ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0),
    "hard_sigmoid": lambda a: np.clip(a / 6 + 0.5, 0, 1),
    "softsign": lambda a: a / (1 + np.abs(a)),
    None: lambda a: a,
}
# The rounding of one operation, a few times over: sequences here are short.
TOLERANCES = {
    "float32": 1e-5,
    # Keras makes products of float64 in float32 where the tensors are not TensorFlow's.
    "float64": 1e-12 if BACKEND == "tensorflow" else 1e-5,
    "mixed_bfloat16": 1e-1,
    "mixed_float16": 1e-2,
}


def to_numpy(tensor):
    """A tensor or variable of any backend, as it is now.

    A copy, since what PyTorch returns changes with the variable.
    """
    return np.array(keras.ops.convert_to_numpy(tensor))


def flat(outputs):
    """The tensors that a layer returned, as a list of NumPy arrays."""
    return [to_numpy(o) for o in keras.tree.flatten(outputs)]


def assert_same(got, expected, tolerance=0.0):
    """Same number, dtypes, shapes and values, NaN included."""
    got, expected = flat(got), flat(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = a.astype("float64"), b.astype("float64")
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def scale_of(arrays):
    """The largest number among them, or 1: what a tolerance is relative to."""
    return max(1.0, *(np.abs(array).max() for array in flat(arrays)))


def across_programs(dtype="float32"):
    """The tolerance where Keras may run other operations than the layer under test.

    On TensorFlow, it runs the same.
    """
    return 0.0 if BACKEND == "tensorflow" else TOLERANCES[dtype]


def across_loops(dtype="float32"):
    """The tolerance where few timesteps run the fused loop, as on PyTorch, or not."""
    return TOLERANCES[dtype] if BACKEND == "torch" else 0.0


def nested(layer, states):
    """One state for each size, nested as Keras's own `get_initial_state` nests them.

    In lists of Python: Keras tracks the lists of a cell, which JAX takes for leaves.
    """
    remaining = iter(states)

    def pack(size):
        return next(remaining) if isinstance(size, int) else [pack(s) for s in size]

    sizes = layer.state_size
    if isinstance(layer.cell, keras.layers.StackedRNNCells) and len(sizes) > 1:
        sizes = [[size] if isinstance(size, int) else size for size in sizes]
    return pack(sizes)


def value_of(entry):
    """The `(units,)` value that rows start from at inference."""
    return to_numpy(getattr(entry, "value", getattr(entry, "mean", None)))


def owned_values(layer):
    """For each state its `(units,)` value: the owned one, or the start of the cell."""
    starts = getattr(layer.cell, "initial_values", [0.0] * len(layer.state_units))
    return [
        np.full(units, start) if entry is None else value_of(entry)
        for entry, units, start in zip(
            layer.initial_state, layer.state_units, starts, strict=True
        )
    ]


def encoded(entry, context):
    """What a `Conditional` state with a `Dense` for an encoder starts from."""
    kernel, *bias = flat(entry.encoder.weights)
    state = context @ kernel + sum(bias)
    tanh = entry.encoder.activation is keras.activations.tanh
    return np.tanh(state) if tanh else state


def tiled_states(layer, batch, context=None):
    """What the one rule speaks of: for each state, an array `(batch, units)`."""
    states = [
        encoded(entry, context)
        if entry is not None and entry.takes_context
        else np.tile(value, (batch, 1))
        for entry, value in zip(layer.initial_state, owned_values(layer), strict=True)
    ]
    return nested(layer, states)


def reference_of(layer, **kwargs):
    """The layer of Keras that one is named after, with its weights."""
    if hasattr(layer, "reset_after"):
        kwargs.setdefault("reset_after", layer.reset_after)
    reference = layer.keras_layer(layer.units, **kwargs)
    reference.build((None, None, layer.cell.kernel.shape[0]))
    reference.set_weights(layer.cell.get_weights())
    return reference


def pieces(marks):
    """The sequences of a row, each as its first timestep and the one after its last."""
    edges = sorted({0, *np.flatnonzero(marks).tolist(), len(marks)})
    return list(itertools.pairwise(edges))


def by_pieces(case, reference, reset_mask, first, start_at):
    """Outputs and last states of each row, whose pieces are run one by one.

    Args:
        case: What gives the inputs and the mask.
        reference: A layer of Keras that returns sequences and states.
        reset_mask: Boolean array `(batch, timesteps)`.
        first: For each state, what a row starts from, `(batch, units)`.
        start_at: Function of a row and a timestep that returns what that row restarts
            from there, an array `(units,)` for each state.
    """
    rows = []
    for row, marks in enumerate(reset_mask):
        found, states = [], None
        in_order = pieces(marks)
        if reference.go_backwards:
            in_order.reverse()
        for number, (begin, end) in enumerate(in_order):
            starts = [state[row] for state in first]
            restarts = marks[0] if not reference.go_backwards else False
            if number or restarts:
                read_first = end - 1 if reference.go_backwards else begin
                starts = start_at(row, read_first)
            kwargs = {}
            if case.mask is not None:
                kwargs["mask"] = keras.ops.convert_to_tensor(
                    case.mask[row : row + 1, begin:end]
                )
            starts = nested(reference, [s[None] for s in starts])
            x = case.inputs[row : row + 1, begin:end]
            outputs, *states = reference(x, initial_state=starts, **kwargs)
            found.append(outputs)
        rows.append([keras.ops.concatenate(found, 1), *keras.tree.flatten(states)])
    return [keras.ops.concatenate(of_rows, 0) for of_rows in zip(*rows, strict=True)]


def numpy_lstm(case, layer, states):
    """An LSTM in float64 straight from the equations; returns outputs, h and c.

    Hochreiter and Schmidhuber (1997) with the forget gate of Gers, Schmidhuber and
    Cummins (2000): i, f, o = s(Wx + Uh + b), c = f c + i a(Wx + Uh + b), h = o a(c).
    A masked timestep leaves the states and repeats the output before it, which on JAX
    may be h itself: the loop of Keras starts from it.
    """
    arguments = case.arguments
    weights = [w.astype("float64") for w in flat(layer.cell.weights)]
    kernel, recurrent_kernel = weights[:2]
    bias = weights[2] if arguments["use_bias"] else 0.0
    activation = ACTIVATIONS[arguments["activation"]]
    recurrent_activation = ACTIVATIONS[arguments["recurrent_activation"]]
    order = range(case.inputs.shape[1])
    h, c = (state.astype("float64") for state in states)
    starts_from_h = BACKEND == "jax" and not arguments["unroll"]
    output, outputs = h if starts_from_h else np.zeros_like(h), []
    for step in reversed(order) if arguments["go_backwards"] else order:
        inputs = case.inputs[:, step].astype("float64")
        gates = inputs @ kernel + h @ recurrent_kernel + bias
        i, f, g, o = np.split(gates, 4, axis=1)
        i, f, o = map(recurrent_activation, (i, f, o))
        new_c = f * c + i * activation(g)
        new_h = o * activation(new_c)
        keep = np.ones(len(h), bool) if case.mask is None else case.mask[:, step]
        keep = keep[:, None]
        before = 0.0 if arguments["zero_output_for_mask"] else output
        output = np.where(keep, new_h, before)
        h, c = np.where(keep, new_h, h), np.where(keep, new_c, c)
        outputs.append(output)
    sequence = np.stack(outputs, axis=1)
    return (sequence if arguments["return_sequences"] else output), h, c


def gradients(call, watched, order=1):
    """Gradients of a loss of what `call` returns, up to the given order.

    With the tape of TensorFlow; `watched` may be nested. Cubes, so that the second
    derivatives have something to say.
    """
    with tf.GradientTape(persistent=order > 1) as tape:
        tape.watch(keras.tree.flatten(watched))
        loss = sum(tf.reduce_sum(o**3) for o in keras.tree.flatten(call()))
        found = []
        for _ in range(order - 1):
            found += tape.gradient(loss, watched, unconnected_gradients="zero")
            loss = sum(tf.reduce_sum(d**2) for d in keras.tree.flatten(found))
    return found + tape.gradient(loss, watched, unconnected_gradients="zero")


class HandedItsStates(keras.layers.Layer):
    """A layer of Keras that is handed, at each call, states made of its own weights.

    Args:
        rnn: The layer of Keras.
        layer: A layer of this package that is built, whose states these are.
        noise: For each state an array `(batch, units)`: what a `Sampled` one draws,
            before its mean and standard deviation.
    """

    def __init__(self, rnn, layer, noise):
        super().__init__()
        self.rnn = rnn
        self.supports_masking = rnn.supports_masking  # From Keras 3.16 on, it is False.
        self.takes_context = layer.takes_context
        self.owned = [
            [self._copy(weight) for weight in entry.weights]
            for entry in layer.initial_state
        ]
        self.makers = [
            self._maker(entry, drawn)
            for entry, drawn in zip(layer.initial_state, noise, strict=True)
        ]

    def _copy(self, weight):
        copied = self.add_weight(
            shape=weight.shape,
            trainable=weight.trainable,
            regularizer=weight.regularizer,
            constraint=weight.constraint,
        )
        copied.assign(to_numpy(weight))
        return copied

    @staticmethod
    def _maker(entry, noise):
        """The function from weights and a context to a state, by the kind of entry."""
        if entry.takes_context:
            activation = entry.encoder.activation
            return lambda context, kernel, bias=0.0: activation(
                keras.ops.matmul(context, kernel) + bias
            )
        if hasattr(entry, "stddev"):
            return lambda _, mean, stddev: mean + stddev * noise
        return lambda _, value: keras.ops.broadcast_to(value, noise.shape)

    def call(self, inputs, mask=None, context=None, training=False):
        states = [
            make(context, *weights)
            for make, weights in zip(self.makers, self.owned, strict=True)
        ]
        states = nested(self.rnn, states)
        return self.rnn(inputs, initial_state=states, mask=mask, training=training)

    def compute_mask(self, inputs, mask=None):
        return self.rnn.compute_mask(inputs, mask)
