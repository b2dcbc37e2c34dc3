"""Layers, models and data for the tests."""

import itertools

import keras
import numpy as np
import pytest
from keras import layers

import keras_init_lstm
from backends import BACKEND, WIDEST, tf
from benchmarks.speed.explicit_state import ExplicitState
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    Trainable,
)
from keras_init_lstm.initial_states.base import InitialState

BATCH, TIMESTEPS, FEATURES, UNITS = 4, 5, 3, 2
SHAPE = (BATCH, TIMESTEPS, FEATURES)


def normal(*shape, seed=0):
    """Standard normal numbers, the same at every call with the same arguments."""
    numbers = np.random.default_rng([seed, *shape]).normal(size=shape)
    return numbers.astype("float32")


X, CONTEXT = normal(*SHAPE), normal(BATCH, 6)


# Layers, cells and kinds.


@keras.saving.register_keras_serializable()
class TwoSpeedCell(layers.Layer):
    """A custom cell with two states of different sizes and a custom initial state."""

    initial_values = (0.0, 0.25)

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
            keras.ops.full((batch_size, size), value, self.compute_dtype)
            for size, value in zip(self.state_size, self.initial_values, strict=True)
        ]

    def get_config(self):
        return {**super().get_config(), "units": self.units}


class UnregisteredCell(layers.Layer):
    """A custom cell that is not registered with Keras."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))

    def call(self, x, states):
        h = keras.ops.tanh(keras.ops.matmul(x, self.kernel) + states[0])
        return h, [h]


def state_size(name, units):
    return {
        "LSTM": [units, units],
        "stacked": [[units, units], units + 1],
        "custom": [units, units + 1],
    }.get(name, [units])


CELL_ARGUMENTS = ("units", "activation", "recurrent_activation", "use_bias", "dtype")
CELL_ARGUMENTS += ("seed", "dropout", "recurrent_dropout")


def recurrent(package, name, arguments):
    """An unbuilt layer of this package, or of `keras.layers`."""
    if name in ("stacked", "custom"):
        given = {key: arguments[key] for key in CELL_ARGUMENTS if key in arguments}
        arguments = {k: v for k, v in arguments.items() if k not in CELL_ARGUMENTS}
        arguments["dtype"] = given["dtype"]
        arguments["cell"] = _cell(name, given)
        name = "RNN"
    prefix = "" if package is layers else "InitState"
    return getattr(package, f"{prefix}{name}")(**arguments)


def _cell(name, given):
    """Two cells of Keras, or a custom cell."""
    if name == "custom":
        return TwoSpeedCell(given["units"], dtype=given["dtype"])
    upper = {**given, "units": given["units"] + 1}
    cells = [layers.LSTMCell(**given), layers.GRUCell(**upper)]
    return layers.StackedRNNCells(cells, dtype=given["dtype"])


def sampled(*args, learned=False, **kwargs):
    return Sampled(*args, learned=learned, **kwargs)


class PerRow(InitialState):
    """A custom kind with a weight, but without a value for each unit."""

    def build(self, state_shape):
        super().build(state_shape)
        self.scale = self.add_weight(name="scale", shape=())

    def call(self, batch_size, training=False):
        return self.scale * keras.ops.ones((batch_size, self.units))


INITIAL_STATES = {
    "zeros": None,
    "fixed": [Fixed([0.5, -0.25]), 0.125],
    "sampled": Sampled(0.5, 1 / 64, seed=1),  # A loss falls in spite of the noise.
    "trainable": [Trainable([0.5, -0.25], regularizer="l2"), Trainable("ones")],
}


WRAPS = {
    "alone": lambda layer: layer,
    "both directions": InitStateBidirectional,
}


def encoder(units=UNITS, **kwargs):
    """An encoder of a context. Its random bias shows if the bias is lost."""
    return layers.Dense(units, bias_initializer="random_normal", **kwargs)


def encoder_of(sizes, seed=None, features=CONTEXT.shape[1]):
    """An encoder that returns a tensor for each state."""
    context = keras.Input((features,))
    initializers = [
        keras.initializers.RandomUniform(-1, 1, seed=seed and seed + index)
        for index in range(len(sizes))
    ]
    outputs = [
        layers.Dense(size, kernel_initializer=initializer)(context)
        for size, initializer in zip(sizes, initializers, strict=True)
    ]
    return keras.Model(context, outputs)


# One layer of each kind, and its layer of Keras.

KINDS = [*INITIAL_STATES, "conditional", "conditional of all states"]


def ours(name, kind="trainable", **kwargs):
    """An `InitStateLSTM` or `InitStateGRU` with an initial state of `KINDS`."""
    sizes = state_size(name, UNITS)
    if kind in INITIAL_STATES:
        start = INITIAL_STATES[kind]
    elif kind == "conditional":
        start = Conditional(encoder())
    else:
        start = Conditional(encoder_of(sizes), all_states=True)
    if isinstance(start, list):
        start = start[: len(sizes)]
    cls = getattr(keras_init_lstm, f"InitState{name}")
    return cls(UNITS, initial_state=start, **kwargs)


def of_keras(name, **kwargs):
    return getattr(layers, name)(UNITS, **kwargs)


MAKERS = [ours, of_keras]


# The same initial state, owned by the layer, or passed at the call.


def _weights_of(units):
    """Arguments with which layers of the same size have the same weights."""
    return {
        "kernel_initializer": keras.initializers.GlorotUniform(seed=units),
        "recurrent_initializer": keras.initializers.Orthogonal(seed=units),
    }


def owning(units, **kwargs):
    return InitStateLSTM(
        units, initial_state=[0.25, Trainable(-0.5)], **_weights_of(units), **kwargs
    )


def by_hand(units, **kwargs):
    h0, c0 = keras.initializers.Constant(0.25), keras.initializers.Constant(-0.5)
    return ExplicitState(units, h0, c0, fixed=["h0"], **_weights_of(units), **kwargs)


# Models around `rnn(units, **kwargs)`, which makes any recurrent layer.


def dense():
    return layers.Dense(1, kernel_initializer=keras.initializers.HeNormal(seed=3))


def sequential(rnn):
    return keras.Sequential([keras.Input((None, FEATURES)), rnn(UNITS), dense()])


def sequential_without_input(rnn):
    return keras.Sequential([rnn(UNITS), dense()])


def functional(rnn):
    x = keras.Input((TIMESTEPS, FEATURES))
    return keras.Model(x, dense()(rnn(UNITS)(x)))


def subclassed(rnn):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.rnn = rnn(UNITS)
            self.dense = dense()

        def call(self, x, training=False):
            return self.dense(self.rnn(x, training=training))

    return Model()


def stack(rnn):
    return keras.Sequential(
        [rnn(4, return_sequences=True), rnn(3, return_sequences=True), rnn(2), dense()]
    )


def shared(rnn):
    layer = rnn(FEATURES, return_sequences=True)
    x = keras.Input((None, FEATURES))
    return keras.Model(x, dense()(layers.GlobalMaxPool1D()(layer(layer(x) + x))))


def nested(rnn):
    inner = keras.Sequential(
        [keras.Input((None, FEATURES)), rnn(FEATURES, return_sequences=True)]
    )
    x = keras.Input((None, FEATURES))
    return keras.Model(x, functional(rnn)(inner(x)))


def masked(rnn):
    return keras.Sequential(
        [layers.Masking(0.0), rnn(UNITS, return_sequences=True), rnn(UNITS), dense()]
    )


ARCHITECTURES = [
    sequential,
    sequential_without_input,
    functional,
    subclassed,
    stack,
    shared,
    nested,
    masked,
]


def conditional(wrap=lambda layer: layer, **kwargs):
    """A model with a context, around a layer that `wrap` may wrap."""
    x, context = keras.Input((None, FEATURES)), keras.Input((6,))
    start = [Conditional(encoder()), Trainable("ones")]
    layer = wrap(InitStateLSTM(UNITS, initial_state=start, **kwargs))
    return keras.Model([x, context], layers.Dense(1)(layer(x, context=context)))


def models_to_save():
    """A model for each kind, with a wrapper, a dtype policy or a stream."""

    def model(*layers_, batch_size=None):
        return keras.Sequential([keras.Input(SHAPE[1:], batch_size), *layers_])

    def rnn(kind, **kwargs):
        return InitStateLSTM(UNITS, initial_state=INITIAL_STATES[kind], **kwargs)

    i, h = keras.Input(SHAPE[1:]), keras.Input((UNITS,))
    explicit = keras.Model([i, h], rnn("trainable")(i, initial_state=[h, None]))
    return {
        "stack": (model(rnn("zeros", return_sequences=True), rnn("sampled")), X),
        "wrapper": (model(layers.Bidirectional(rnn("trainable")), layers.Dense(1)), X),
        "widest": (model(rnn("fixed", dtype=WIDEST, activation="relu")), X),
        "mixed": (model(rnn("trainable", dtype="mixed_bfloat16")), X),
        "stream": (model(rnn("trainable", stateful=True), batch_size=BATCH), X),
        "explicit": (explicit, [X, normal(BATCH, UNITS)]),
        "context": (conditional(InitStateBidirectional), [X, CONTEXT]),
    }


def model_of_several_kinds(layer_with_a_mean, timesteps=None):
    """A model with owned, sampled and conditional initial states."""
    x, context = keras.Input((timesteps, FEATURES)), keras.Input(CONTEXT.shape[1:])
    conditional = Conditional(layers.Dense(UNITS))
    outputs = [
        InitStateLSTM(UNITS, initial_state=[0.5, "trainable"])(x),
        layer_with_a_mean(UNITS, initial_state=Sampled(0.3, 0.1))(x),
        InitStateLSTM(UNITS, initial_state=conditional)(x, context=context),
    ]
    model = keras.Model([x, context], outputs)
    for index, weight in enumerate(model.weights):
        weight.assign(normal(*weight.shape, seed=index))
    return model


# Models with layers of Keras, for `with_initial_state()`.


def every_layer():
    return [
        keras.Input(SHAPE[1:]),
        layers.LSTM(4, return_sequences=True, name="first"),
        layers.Dropout(0.5),
        layers.GRU(3, return_sequences=True, name="second"),
        layers.SimpleRNN(3, name="third"),
        layers.Dense(1),
    ]


def custom_cells():
    return [
        keras.Input(SHAPE[1:]),
        layers.RNN([layers.LSTMCell(4), UnregisteredCell(3)], return_sequences=True),
        layers.RNN(UnregisteredCell(3)),
        layers.Dense(1),
    ]


def deferred():
    return sequential_without_input(layers.LSTM)


def in_wrappers():
    inner = keras.Sequential(
        [keras.Input((FEATURES, 1)), layers.Bidirectional(layers.LSTM(2))]
    )
    backward = layers.SimpleRNN(3, go_backwards=True)
    return [
        keras.Input(SHAPE[1:]),
        layers.Reshape((TIMESTEPS, FEATURES, 1)),
        layers.TimeDistributed(inner, name="each"),
        layers.Bidirectional(layers.GRU(3, return_sequences=True), "sum", name="two"),
        layers.Bidirectional(layers.SimpleRNN(3), "mul", backward_layer=backward),
        layers.Dense(1),
    ]


def with_tokens():
    return [
        keras.Input((TIMESTEPS,), dtype="int32"),
        layers.Embedding(5, FEATURES, mask_zero=True),
        layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
        layers.LSTM(3, return_sequences=True, zero_output_for_mask=True),
        layers.LSTM(3),
        layers.Dense(1),
    ]


def stateful_model():
    return [
        keras.Input(SHAPE[1:], batch_size=BATCH),
        layers.LSTM(3, stateful=True),
        layers.Dense(1),
    ]


def two_inputs():
    x, start = keras.Input(SHAPE[1:], name="x"), keras.Input((FEATURES,), name="start")
    twice = layers.LSTM(FEATURES, return_sequences=True)
    h = twice(twice(x) + x)
    states = [layers.Dense(4)(start), layers.Dense(4)(start)]
    h = layers.LSTM(4, return_sequences=True)(h, initial_state=states)
    return keras.Model([x, start], layers.Dense(1)(layers.GRU(4)(h)))


def at_two_depths():
    inner = keras.Sequential(
        [keras.Input(SHAPE[1:]), layers.LSTM(FEATURES, return_sequences=True)],
        name="inner",
    )
    x, y = keras.Input(SHAPE[1:]), keras.Input(SHAPE[1:])
    middle = keras.Model(y, inner(y * 2.0))
    h = layers.LSTM(4, name="last")(inner(middle(x)))
    return keras.Model(x, layers.Dense(1)(h))


ADOPTED = [
    every_layer,
    custom_cells,
    deferred,
    in_wrappers,
    with_tokens,
    stateful_model,
    two_inputs,
    at_two_depths,
]


def model_of(architecture, dtype="float32"):
    """One of the models above. All its weights and biases are different."""
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        made = architecture()
        model = keras.Sequential(made) if isinstance(made, list) else made
        if not model.built:
            model.build(SHAPE)
    finally:
        keras.config.set_dtype_policy(policy)
    model.set_weights(
        [0.5 * normal(*w.shape, seed=i) for i, w in enumerate(model.weights)]
    )
    return model


def batch_for(model):
    """A batch for a model, of Keras 2 too: small integers, which may be tokens."""
    rng = np.random.default_rng(1)
    drawn = [
        rng.integers(0, 5, (BATCH, *x.shape[1:])).astype(
            keras.backend.standardize_dtype(x.dtype)
        )
        for x in model.inputs
    ]
    return drawn if len(drawn) > 1 else drawn[0]


# Training with every source of data, and in every mode.


class Sequence(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return len(self.x) // BATCH

    def __getitem__(self, index):
        part = slice(index * BATCH, (index + 1) * BATCH)
        return self.x[part], self.y[part]


SOURCES = {
    "arrays": lambda x, y: {"x": x, "y": y, "batch_size": BATCH, "shuffle": False},
    "tf.data": lambda x, y: {
        "x": tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    },
    "PyDataset": lambda x, y: {"x": Sequence(x, y), "shuffle": False},
}
DATA = ["arrays", pytest.param("tf.data", marks=pytest.mark.tensorflow), "PyDataset"]
WITH_XLA = pytest.param({"jit_compile": True}, marks=pytest.mark.tensorflow)
MODES = [{}, {"run_eagerly": True}, WITH_XLA]


def trained(model, data="arrays", **compile_arguments):
    """The losses in training and evaluation, and the predictions."""
    x, y = normal(3 * BATCH, TIMESTEPS, FEATURES), normal(3 * BATCH, 1)
    x[0, 2:], x[1, :3], x[2] = 0, 0, 0
    model.compile(keras.optimizers.SGD(0.01), "mse", **compile_arguments)
    batches = SOURCES[data](x, y)
    history = model.fit(**batches, epochs=3, verbose=0).history["loss"]
    assert history[-1] < history[0]
    batches.pop("shuffle", None)
    loss = model.evaluate(**batches, verbose=0)
    batches.pop("y", None)
    return [np.array(history), np.array(loss), model.predict(**batches, verbose=0)]


# Models for streams, of every kind of recurrent layer.


def layer_of(kind, **kwargs):
    """A layer of this package or of Keras that returns sequences."""
    kwargs = {"return_sequences": True, **kwargs}
    return {
        "ours": lambda: InitStateLSTM(UNITS, initial_state="trainable", **kwargs),
        "of Keras": lambda: layers.LSTM(UNITS, **kwargs),
        "frozen": lambda: InitStateGRU(
            UNITS, initial_state=0.5, trainable=False, **kwargs
        ),
        "sampled": lambda: InitStateSimpleRNN(
            UNITS, initial_state=Sampled(0.5), **kwargs
        ),
        "stacked": lambda: InitStateRNN(
            [layers.LSTMCell(UNITS), layers.GRUCell(UNITS + 1)],
            initial_state=["trainable", 0.25],
            **kwargs,
        ),
        "custom": lambda: InitStateRNN(TwoSpeedCell(UNITS), **kwargs),
        "not registered": lambda: layers.RNN(UnregisteredCell(UNITS), **kwargs),
    }[kind]()


STREAM_KINDS = ("ours", "of Keras", "stacked")
if BACKEND == "tensorflow":  # The same code takes longer on other backends.
    STREAM_KINDS += ("frozen", "sampled", "custom", "not registered")


def with_weights(model):
    """Returns the model, with random weights."""
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def chunks(x, *sizes):
    edges = np.cumsum([0, *sizes])
    return [x[:, a:b] for a, b in itertools.pairwise(edges)]
