"""What the properties are drawn from, and the references they are checked against."""

import dataclasses

import keras
import numpy as np
from hypothesis import strategies as st

from keras_init_lstm import Fixed, InitStateLSTM, Sampled, Trainable

ACTIVATIONS = {
    "tanh": np.tanh,
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "relu": lambda a: np.maximum(a, 0),
    "hard_sigmoid": lambda a: np.clip(a / 6 + 0.5, 0, 1),
    "softsign": lambda a: a / (1 + np.abs(a)),
    None: lambda a: a,
}
DTYPES = ("float32", "float64", "mixed_bfloat16", "mixed_float16")
# The rounding of one operation, a few times over: sequences here are short.
TOLERANCES = {
    "float32": 1e-5,
    "float64": 1e-12,
    "mixed_bfloat16": 1e-1,
    "mixed_float16": 1e-2,
}
# What the fused loop is for.
FUSED = {
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "unroll": False,
    "recurrent_dropout": 0,
}
KINDS = ("zeros", "fixed", "sampled", "trainable")

seeds = st.integers(0, 2**31 - 1)
values = st.floats(-1, 1, width=32)


def arrays(*shape, elements=values):
    size = int(np.prod(shape))
    return st.lists(elements, min_size=size, max_size=size).map(
        lambda drawn: np.reshape(np.array(drawn, "float64"), shape)
    )


def entries(units, kinds=KINDS):
    """Everything that an entry of `initial_state` may be."""
    initializers = st.one_of(
        st.sampled_from(["zeros", "ones"]),
        values,
        arrays(units),
        seeds.map(lambda seed: keras.initializers.RandomUniform(-1, 1, seed=seed)),
    )
    spread = st.floats(0, 1, width=32)
    by_kind = {
        "zeros": st.sampled_from([None, "zeros"]),
        "fixed": st.one_of(
            st.just("fixed"),
            values,
            arrays(units),
            arrays(units).map(lambda a: a.astype("float32")),
            initializers.map(Fixed),
        ),
        "sampled": st.one_of(
            st.just("sampled"),
            st.builds(
                Sampled,
                mean=values | arrays(units),
                stddev=spread | arrays(units, elements=spread),
                distribution=st.sampled_from(["normal", "truncated_normal", "uniform"]),
                trainable=st.booleans(),
                at_inference=st.just("mean"),
                seed=st.none() | seeds,
            ),
        ),
        "trainable": st.one_of(
            st.just("trainable"),
            st.builds(
                Trainable,
                initializers,
                regularizer=st.sampled_from([None, "l2"]),
                constraint=st.sampled_from([None, "non_neg", "unit_norm"]),
            ),
        ),
    }
    return st.one_of([by_kind[kind] for kind in kinds])


def initial_states(units, kinds=KINDS):
    return st.one_of(
        entries(units, kinds),
        st.lists(entries(units, kinds), min_size=2, max_size=2),
        st.tuples(entries(units, kinds), entries(units, kinds)),
    )


@st.composite
def masks(draw, batch, timesteps):
    """No mask, or one that is right-padded, left-padded, holed, or False for all."""
    lengths = np.array(
        draw(st.lists(st.integers(0, timesteps), min_size=batch, max_size=batch))
    )
    steps = np.arange(timesteps)
    holed = draw(
        st.lists(st.booleans(), min_size=batch * timesteps, max_size=batch * timesteps)
    )
    return draw(
        st.sampled_from(
            [
                None,
                steps < lengths[:, None],
                steps >= lengths[:, None],
                np.reshape(holed, (batch, timesteps)),
                np.zeros((batch, timesteps), bool),
            ]
        )
    )


@dataclasses.dataclass
class Case:
    """A layer's arguments, and a batch for it."""

    arguments: dict
    initial_state: object
    inputs: np.ndarray
    mask: np.ndarray | None

    @property
    def batch(self):
        return len(self.inputs)

    @property
    def units(self):
        return self.arguments["units"]

    @property
    def tolerance(self):
        return TOLERANCES[self.arguments["dtype"]]

    def assert_same(self, got, expected):
        """To the last bit; the fused loop rounds in another order."""
        assert_same(got, expected, self.tolerance if self.arguments["use_fused"] else 0)

    def layer(self, **kwargs):
        """The layer under test, built, with every weight drawn at random."""
        layer = InitStateLSTM(
            **{**self.arguments, "initial_state": self.initial_state, **kwargs}
        )
        layer.build(self.inputs.shape)
        rng = np.random.default_rng(self.arguments["seed"])
        weights = [w.numpy() for w in layer.cell.weights]
        layer.cell.set_weights([rng.normal(0, 0.5, w.shape) for w in weights])
        return layer

    def lstm(self, layer, **kwargs):
        """An independent `keras.layers.LSTM` with the same arguments and weights."""
        arguments = {**self.arguments, **kwargs}
        del arguments["use_fused"]
        lstm = keras.layers.LSTM(**arguments)
        lstm.build(self.inputs.shape)
        lstm.set_weights([w.numpy() for w in layer.cell.weights])
        return lstm


@st.composite
def cases(draw, kinds=KINDS, dtypes=DTYPES, dropout=True, **fixed):
    """Cases over the whole configuration of the layer; `fixed` sets arguments."""
    units = draw(st.integers(1, 4))
    batch, timesteps, features = (draw(st.integers(1, n)) for n in (5, 6, 3))
    arguments = {
        "units": units,
        "activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "recurrent_activation": draw(st.sampled_from(list(ACTIVATIONS))),
        "use_bias": draw(st.booleans()),
        "dropout": draw(st.sampled_from([0, 0.3])) if dropout else 0,
        "recurrent_dropout": draw(st.sampled_from([0, 0.3])) if dropout else 0,
        "return_sequences": draw(st.booleans()),
        "return_state": draw(st.booleans()),
        "go_backwards": draw(st.booleans()),
        "unroll": draw(st.booleans()),
        "zero_output_for_mask": draw(st.booleans()),
        "dtype": draw(st.sampled_from(dtypes)),
        "seed": draw(seeds),
        "use_fused": draw(st.booleans()),
        **fixed,
    }
    if arguments["use_fused"]:
        arguments.update(FUSED)
    rng = np.random.default_rng(draw(seeds))
    return Case(
        arguments=arguments,
        initial_state=draw(initial_states(units, kinds)),
        inputs=rng.normal(size=(batch, timesteps, features)).astype("float32"),
        mask=draw(masks(batch, timesteps)),
    )


def flat(outputs):
    """The tensors that a layer returned, as a list of NumPy arrays."""
    return [keras.ops.convert_to_numpy(o) for o in keras.tree.flatten(outputs)]


def assert_same(got, expected, tolerance=0.0):
    """Same number, dtypes, shapes and values, NaN included."""
    got, expected = flat(got), flat(expected)
    assert len(got) == len(expected)
    for a, b in zip(got, expected, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        a, b = a.astype("float64"), b.astype("float64")
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def owned_values(layer):
    """The `(units,)` values that rows start from at inference, read one by one."""
    return [
        np.zeros(layer.units)
        if entry is None
        else getattr(entry, "value", getattr(entry, "mean", None)).numpy()
        for entry in layer.initial_state
    ]


def tiled_states(layer, batch):
    """What the one rule speaks of, tiled with NumPy: two arrays `(batch, units)`."""
    return [np.tile(value, (batch, 1)) for value in owned_values(layer)]


def numpy_lstm(case, layer, states):
    """An LSTM in float64 straight from the equations; returns outputs, h and c.

    Hochreiter and Schmidhuber (1997) with the forget gate of Gers, Schmidhuber and
    Cummins (2000): i, f, o = s(Wx + Uh + b), c = f c + i a(Wx + Uh + b), h = o a(c).
    A masked timestep leaves the states and repeats the output before it.
    """
    arguments = case.arguments
    weights = [w.numpy().astype("float64") for w in layer.cell.weights]
    kernel, recurrent_kernel = weights[:2]
    bias = weights[2] if arguments["use_bias"] else 0.0
    activation = ACTIVATIONS[arguments["activation"]]
    recurrent_activation = ACTIVATIONS[arguments["recurrent_activation"]]
    order = range(case.inputs.shape[1])
    h, c = (state.astype("float64") for state in states)
    output, outputs = np.zeros_like(h), []
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
