"""Reference results for the layers, computed without the package."""

import itertools

import keras
import numpy as np

from backends import BACKEND, tf

ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0),
    "hard_sigmoid": lambda a: np.clip(a / 6 + 0.5, 0, 1),
    "hard_tanh": lambda a: np.clip(a, -1, 1),
    "softsign": lambda a: a / (1 + np.abs(a)),
    "silu": lambda a: a / (1 + np.exp(-a)),
    "elu": lambda a: np.where(a > 0, a, np.expm1(np.minimum(a, 0))),
    "linear": lambda a: a,
    None: lambda a: a,
}
# A few times the rounding of one operation: the sequences are short.
TOLERANCES = {
    "float32": 1e-5,
    # Keras multiplies float64 in float32 unless the tensors are TensorFlow's.
    "float64": 1e-12 if BACKEND == "tensorflow" else 1e-5,
    "mixed_bfloat16": 1e-1,
    "mixed_float16": 1e-2,
}


def to_numpy(tensor):
    """The present value of a tensor or variable of any backend.

    It is a copy, because PyTorch's arrays change with the variable.
    """
    return np.array(keras.ops.convert_to_numpy(tensor))


def flat(outputs):
    """The outputs of a layer as a list of NumPy arrays."""
    return [to_numpy(o) for o in keras.tree.flatten(outputs)]


def assert_same(got, expected, tolerance=0.0):
    """Asserts the same number of arrays, dtypes, shapes and values, NaN included."""
    got, expected = flat(got), flat(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = a.astype("float64"), b.astype("float64")
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def scale_of(arrays):
    """The largest number in the arrays, or 1, to which a tolerance is relative."""
    return max(1.0, *(np.abs(array).max() for array in flat(arrays)))


def across_programs(dtype="float32"):
    """The tolerance if Keras may run other operations than the layer under test.

    On TensorFlow, both run the same operations.
    """
    return 0.0 if BACKEND == "tensorflow" else TOLERANCES[dtype]


def nested(layer, states):
    """The states, nested as in Keras's `get_initial_state`, in Python lists.

    JAX does not treat Keras's tracked lists as lists.
    """
    remaining = iter(states)

    def pack(size):
        return next(remaining) if isinstance(size, int) else [pack(s) for s in size]

    sizes = layer.state_size
    if sizes == [-1]:  # A ConvLSTM does not tell its states.
        return list(states)
    if isinstance(layer.cell, keras.layers.StackedRNNCells) and len(sizes) > 1:
        sizes = [[size] if isinstance(size, int) else size for size in sizes]
    return pack(sizes)


def value_of(entry):
    """The initial state at inference, an array `(units,)`."""
    return to_numpy(getattr(entry, "value", getattr(entry, "mean", None)))


def owned_values(layer):
    """For each state its initial value `(units,)`: the owned one, or the cell's."""
    cell_values = getattr(layer.cell, "initial_values", [0.0] * len(layer.state_units))
    return [
        np.full(units, cell_value) if entry is None else value_of(entry)
        for entry, units, cell_value in zip(
            layer.initial_state, layer.state_units, cell_values, strict=True
        )
    ]


def dense_of(layer, index):
    """The `Dense` layer that computes a `Conditional` state."""
    entry = layer.initial_state[index]
    if not entry.all_states:
        return entry.encoder
    return entry.encoder.layers[1:][index - layer.initial_state.index(entry)]


def owners_of(layer):
    """For each state the object with its weights: its kind, or a `Dense` layer."""
    return [
        dense_of(layer, index) if kind is not None and kind.takes_context else kind
        for index, kind in enumerate(layer.initial_state)
    ]


def encoded(dense, context):
    """The outputs of a `Dense` layer."""
    kernel, *bias = flat(dense.weights)
    state = context @ kernel + sum(bias)
    tanh = dense.activation is keras.activations.tanh
    return np.tanh(state) if tanh else state


def tiled_states(layer, batch, context=None):
    """The owned initial states, tiled to arrays `(batch, units)`."""
    states = [
        encoded(dense_of(layer, index), context)
        if entry is not None and entry.takes_context
        else np.tile(owned_values(layer)[index], (batch, 1))
        for index, entry in enumerate(layer.initial_state)
    ]
    return nested(layer, states)


def reference_of(layer, **kwargs):
    """The layer of Keras that corresponds to a layer, with its weights."""
    if hasattr(layer, "reset_after"):
        kwargs.setdefault("reset_after", layer.reset_after)
    reference = layer.keras_layer(layer.units, **kwargs)
    reference.build((None, None, layer.cell.kernel.shape[0]))
    reference.set_weights(layer.cell.get_weights())
    return reference


def pieces(marks):
    """The first timestep of each sequence of a row, and the timestep after its last."""
    edges = sorted({0, *np.flatnonzero(marks).tolist(), len(marks)})
    return list(itertools.pairwise(edges))


def by_pieces(case, reference, reset_mask, first, start_at):
    """Outputs and last states of each row, whose pieces are run one by one.

    Args:
        case: An object with the inputs and the mask.
        reference: A layer of Keras that returns sequences and states.
        reset_mask: Boolean array `(batch, timesteps)`.
        first: For each state, the states before the first timestep, `(batch, units)`.
        start_at: Function that takes a row and a timestep, and returns the states of
            the row after a reset at the timestep: an array `(units,)` for each state.
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
    """Computes an LSTM in float64 from its equations; returns outputs, h and c.

    Hochreiter and Schmidhuber (1997) with the forget gate of Gers, Schmidhuber and
    Cummins (2000): i, f, o = s(Wx + Uh + b), c = f c + i a(Wx + Uh + b), h = o a(c).
    A masked timestep keeps the states and repeats the last output. Before the first
    output, that is zero, or h on JAX.
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
    """Gradients of a loss of the outputs of `call`, up to the given order.

    They are computed by TensorFlow or PyTorch; `watched` may be nested. The loss is a
    sum of cubes, whose second derivatives are not constant.
    """
    if BACKEND == "torch":
        return _gradients_of_torch(call, keras.tree.flatten(watched), order)
    with tf.GradientTape(persistent=order > 1) as tape:
        tape.watch(keras.tree.flatten(watched))
        loss = sum(tf.reduce_sum(o**3) for o in keras.tree.flatten(call()))
        found = []
        for _ in range(order - 1):
            found += tape.gradient(loss, watched, unconnected_gradients="zero")
            loss = sum(tf.reduce_sum(d**2) for d in keras.tree.flatten(found))
    return found + tape.gradient(loss, watched, unconnected_gradients="zero")


def _gradients_of_torch(call, watched, order):
    import torch

    for tensor in watched:
        tensor.requires_grad_()
    loss = sum((o**3).sum() for o in keras.tree.flatten(call()))
    found = []
    for number in range(order):
        found += torch.autograd.grad(
            loss,
            watched,
            create_graph=number + 1 < order,
            allow_unused=True,
            materialize_grads=True,
        )
        loss = sum((d**2).sum() for d in found)
    return found


class HandedItsStates(keras.layers.Layer):
    """A layer of Keras that gets explicit states at each call, from its own weights.

    Args:
        rnn: The layer of Keras.
        layer: A built layer of this package, from which the states are taken.
        noise: For each state an array `(batch, units)`: the standard draws of a
            `Sampled` state.
    """

    def __init__(self, rnn, layer, noise):
        super().__init__()
        self.rnn = rnn
        self.supports_masking = rnn.supports_masking  # It is False from Keras 3.16 on.
        self.takes_context = layer.takes_context
        owners = owners_of(layer)
        self.owned = [[self._copy(w) for w in owner.weights] for owner in owners]
        self.makers = [
            self._maker(owner, drawn)
            for owner, drawn in zip(owners, noise, strict=True)
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
    def _maker(owner, noise):
        """A function that takes weights and a context, and returns a state."""
        if isinstance(owner, keras.layers.Dense):
            return lambda context, kernel, bias=0.0: owner.activation(
                keras.ops.matmul(context, kernel) + bias
            )
        if hasattr(owner, "stddev"):
            # The weights of a layer begin with the ones that are learned.
            mean_at = [id(weight) for weight in owner.weights].index(id(owner.mean))
            return lambda _, *weights: weights[mean_at] + weights[1 - mean_at] * noise
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
