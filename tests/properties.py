"""What the properties are drawn from, and the references they are checked against."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import keras_init_lstm
from keras_init_lstm import Conditional, Fixed, Sampled, Trainable

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
ALL_KINDS = (*KINDS, "conditional")
# An LSTM more often than each of the others.
LAYERS = ("LSTM", "LSTM", "GRU", "SimpleRNN", "stacked", "custom")
FAMILY = {
    "LSTM": {"layers": ["LSTM"], "use_fused": False},
    "fused LSTM": {"layers": ["LSTM"], "use_fused": True},
    **{name: {"layers": [name]} for name in LAYERS[2:]},
}
CONTEXT_FEATURES = 2


@keras.saving.register_keras_serializable()
class TwoSpeedCell(keras.layers.Layer):
    """A cell as users write them: two states of different sizes, a start of its own."""

    starts = (0.0, 0.25)

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.state_size = [units, units + 1]
        self.output_size = units

    def build(self, shape):
        fast, slow = self.state_size
        self.kernel = self.add_weight(
            name="kernel", shape=(shape[-1] + fast + slow, fast)
        )
        self.recurrent_kernel = self.add_weight(
            name="recurrent_kernel", shape=(fast, slow)
        )

    def call(self, inputs, states):
        fast, slow = states
        joined = keras.ops.concatenate([inputs, fast, slow], axis=-1)
        fast = keras.ops.tanh(keras.ops.matmul(joined, self.kernel))
        slow = 0.5 * slow + keras.ops.matmul(fast, self.recurrent_kernel)
        return fast, [fast, slow]

    def get_initial_state(self, batch_size=None):
        return [
            keras.ops.full((batch_size, size), start, self.compute_dtype)
            for size, start in zip(self.state_size, self.starts, strict=True)
        ]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


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
    dense = st.builds(
        keras.layers.Dense,
        st.just(units),
        use_bias=st.booleans(),
        activation=st.sampled_from([None, "tanh"]),
        kernel_initializer=seeds.map(
            lambda seed: keras.initializers.RandomUniform(-1, 1, seed=seed)
        ),
    )
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
        "conditional": dense.map(Conditional),
    }
    return st.one_of([by_kind[kind] for kind in kinds])


def initial_states(state_size, kinds=KINDS):
    """An entry for each state, nested as `state_size`, or one entry for all."""
    if isinstance(state_size, int):
        return entries(state_size, kinds)
    nested = st.tuples(*(initial_states(size, kinds) for size in state_size))
    either = st.one_of(nested, nested.map(list))
    if len(set(keras.tree.flatten(state_size))) == 1:
        either |= entries(keras.tree.flatten(state_size)[0], kinds)
    return either


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

    name: str
    arguments: dict
    initial_state: object
    inputs: np.ndarray
    mask: np.ndarray | None
    context: np.ndarray

    @property
    def batch(self):
        return len(self.inputs)

    @property
    def units(self):
        return self.arguments["units"]

    @property
    def tolerance(self):
        tolerance = TOLERANCES[self.arguments["dtype"]]
        entries = keras.tree.flatten(self.initial_state)
        if any(isinstance(entry, Conditional) for entry in entries):
            # The encoders here have a policy of their own, float32.
            return max(tolerance, TOLERANCES["float32"])
        return tolerance

    def assert_same(self, got, expected):
        """To the last bit; the fused loop rounds in another order."""
        fused = self.arguments.get("use_fused")
        assert_same(got, expected, self.tolerance if fused else 0)

    def make(self, package, arguments):
        """An unbuilt layer of this package, or of `keras.layers`."""
        if self.name in ("stacked", "custom"):
            name = "RNN"
            given = {key: arguments[key] for key in CELL if key in arguments}
            arguments = {k: v for k, v in arguments.items() if k not in CELL}
            arguments["dtype"] = given["dtype"]
            arguments["cell"] = cell(self.name, given)
        else:
            name = self.name
        prefix = "" if package is keras.layers else "InitState"
        return getattr(package, f"{prefix}{name}")(**arguments)

    def layer(self, **kwargs):
        """The layer under test, built, with every weight drawn at random."""
        arguments = {**self.arguments, "initial_state": self.initial_state, **kwargs}
        layer = self.make(keras_init_lstm, arguments)
        layer.build(self.inputs.shape, context_shape=self.context.shape)
        rng = np.random.default_rng(self.arguments["seed"])
        weights = [w.numpy() for w in layer.cell.weights]
        layer.cell.set_weights([rng.normal(0, 0.5, w.shape) for w in weights])
        return layer

    def call(self, layer, rows=slice(None), **kwargs):
        """Calls a layer with the batch, or rows of it, and the context it takes."""
        if getattr(layer, "takes_context", False):
            kwargs["context"] = self.context[rows]
        if self.mask is not None:
            kwargs["mask"] = self.mask[rows]
        return layer(self.inputs[rows], **kwargs)

    def states(self, layer):
        """What the one rule speaks of: for each state, an array `(batch, units)`."""
        starts = getattr(layer.cell, "starts", [0.0] * len(layer.state_units))
        states = []
        for entry, units, start in zip(
            layer.initial_state, layer.state_units, starts, strict=True
        ):
            if isinstance(entry, Conditional):
                weights = [w.numpy() for w in entry.encoder.weights]
                state = self.context @ weights[0] + sum(weights[1:])
                tanh = entry.encoder.activation is keras.activations.tanh
                states.append(np.tanh(state) if tanh else state)
            else:
                value = np.full(units, start) if entry is None else value_of(entry)
                states.append(np.tile(value, (self.batch, 1)))
        return keras.tree.pack_sequence_as(layer.state_size, states)

    def reference(self, layer, **kwargs):
        """The layer of Keras with the same arguments and weights."""
        kwargs = {**self.arguments, **kwargs}
        kwargs.pop("use_fused", None)
        reference = self.make(keras.layers, kwargs)
        reference.build(self.inputs.shape)
        reference.set_weights([w.numpy() for w in layer.cell.weights])
        return reference


CELL = ("units", "activation", "recurrent_activation", "use_bias", "dtype", "seed")
CELL += ("dropout", "recurrent_dropout")


def for_each_layer(*args, **kwargs):
    """As `@given(cases(...))`, for each layer of the family in turn.

    Drawn among the other arguments, some would hardly come up.
    """

    def decorate(test):
        takes_data = "data" in inspect.signature(test).parameters

        @pytest.mark.parametrize("name", FAMILY)
        @settings(max_examples=max(8, settings.default.max_examples // 4))
        @given(data=st.data())
        def run(self, name, data):
            options = {**FAMILY[name], **kwargs}
            case = data.draw(cases(*args, **options))
            test(self, case, data) if takes_data else test(self, case)

        return run

    return decorate


def state_size(name, units):
    return {
        "LSTM": [units, units],
        "stacked": [[units, units], units + 1],
        "custom": [units, units + 1],
    }.get(name, [units])


def cell(name, given):
    """Two cells of Keras, or one of a user's own."""
    if name == "custom":
        return TwoSpeedCell(given["units"], dtype=given["dtype"])
    upper = {**given, "units": given["units"] + 1}
    cells = [keras.layers.LSTMCell(**given), keras.layers.GRUCell(**upper)]
    return keras.layers.StackedRNNCells(cells, dtype=given["dtype"])


@st.composite
def cases(draw, kinds=KINDS, dtypes=DTYPES, dropout=True, layers=("LSTM",), **fixed):
    """Cases over the whole configuration of the layers; `fixed` sets arguments."""
    name = draw(st.sampled_from(layers))
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
        **fixed,
    }
    if name == "LSTM":
        arguments.setdefault("use_fused", draw(st.booleans()))
    if name == "GRU":
        arguments["reset_after"] = draw(st.booleans())
    if name == "SimpleRNN":
        del arguments["recurrent_activation"]
    if arguments.get("use_fused"):
        arguments.update(FUSED)
    rng = np.random.default_rng(draw(seeds))
    return Case(
        name=name,
        arguments=arguments,
        initial_state=draw(initial_states(state_size(name, units), kinds)),
        inputs=rng.normal(size=(batch, timesteps, features)).astype("float32"),
        mask=draw(masks(batch, timesteps)),
        context=rng.normal(size=(batch, CONTEXT_FEATURES)).astype("float32"),
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


def value_of(entry):
    """The `(units,)` value that rows start from at inference."""
    return getattr(entry, "value", getattr(entry, "mean", None)).numpy()


def owned_values(layer):
    return [
        np.zeros(units) if entry is None else value_of(entry)
        for entry, units in zip(layer.initial_state, layer.state_units, strict=True)
    ]


def tiled_states(layer, batch):
    """The states of an LSTM as the one rule speaks of them, tiled with NumPy."""
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
