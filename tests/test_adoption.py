"""Models and layers that exist already, and are taken over."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tf_keras
from keras import layers

from keras_init_lstm import (
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    load_keras2_model,
    with_initial_state,
)
from keras_init_lstm.copies import copy_layer
from properties import assert_same, for_each_layer

BATCH, TIMESTEPS, FEATURES = 4, 5, 3
SHAPE = (BATCH, TIMESTEPS, FEATURES)


def inputs_of(model):
    rng = np.random.default_rng(1)
    drawn = [
        rng.integers(0, 5, (BATCH, *x.shape[1:])).astype(x.dtype) for x in model.inputs
    ]
    return drawn if len(drawn) > 1 else drawn[0]


class Cell(layers.Layer):
    """A cell of the user's own, that is not registered with Keras."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = self.state_size = units

    def build(self, shape):
        self.kernel = self.add_weight(shape=(shape[-1], self.units))

    def call(self, x, states):
        h = keras.ops.tanh(keras.ops.matmul(x, self.kernel) + states[0])
        return h, [h]


def sequential():
    return [
        keras.Input(SHAPE[1:]),
        layers.LSTM(4, return_sequences=True, name="first"),
        layers.Dropout(0.5),
        layers.GRU(3, return_sequences=True, name="second"),
        layers.SimpleRNN(3, name="third"),
        layers.Dense(1),
    ]


def cells():
    return [
        keras.Input(SHAPE[1:]),
        layers.RNN([layers.LSTMCell(4), Cell(3)], return_sequences=True),
        layers.RNN(Cell(3)),
        layers.Dense(1),
    ]


def deferred():
    return [layers.LSTM(4), layers.Dense(1)]


def wrapped():
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


def masked():
    return [
        keras.Input((TIMESTEPS,), dtype="int32"),
        layers.Embedding(5, FEATURES, mask_zero=True),
        layers.Bidirectional(layers.LSTM(2, return_sequences=True)),
        layers.LSTM(3, return_sequences=True, zero_output_for_mask=True),
        layers.LSTM(3),
        layers.Dense(1),
    ]


def stateful():
    return [
        keras.Input(SHAPE[1:], batch_size=BATCH),
        layers.LSTM(3, stateful=True),
        layers.Dense(1),
    ]


def two_inputs():
    x, start = keras.Input(SHAPE[1:], name="x"), keras.Input((FEATURES,), name="start")
    shared = layers.LSTM(FEATURES, return_sequences=True)
    h = shared(shared(x) + x)
    states = [layers.Dense(4)(start), layers.Dense(4)(start)]
    h = layers.LSTM(4, return_sequences=True)(h, initial_state=states)
    return keras.Model([x, start], layers.Dense(1)(layers.GRU(4)(h)))


def nested():
    inner = keras.Sequential(
        [keras.Input(SHAPE[1:]), layers.LSTM(FEATURES, return_sequences=True)],
        name="inner",
    )
    x, y = keras.Input(SHAPE[1:]), keras.Input(SHAPE[1:])
    middle = keras.Model(y, inner(y * 2.0))
    h = layers.LSTM(4, name="last")(inner(middle(x)))
    return keras.Model(x, layers.Dense(1)(h))


ARCHITECTURES = [
    sequential,
    cells,
    deferred,
    wrapped,
    masked,
    stateful,
    two_inputs,
    nested,
]


def model_of(architecture, dtype="float32"):
    with_policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        made = architecture()
        model = keras.Sequential(made) if isinstance(made, list) else made
        if not model.built:
            model.build(SHAPE)
    finally:
        keras.config.set_dtype_policy(with_policy)
    rng = np.random.default_rng(2)
    model.set_weights([rng.normal(0, 0.5, w.shape) for w in model.get_weights()])
    return model


def owning(model):
    return [x for x in model._flatten_layers() if isinstance(x, InitStateRNN)]


@keras.saving.register_keras_serializable()
def halved(y, predicted):
    return keras.ops.mean(keras.ops.abs(y - predicted), axis=-1) / 2


class TestWithInitialState:
    @pytest.mark.parametrize("architecture", ARCHITECTURES)
    def test_predicts_as_before_and_then_learns(self, architecture, tmp_path):
        model = model_of(architecture)
        x = inputs_of(model)
        weights = [w.copy() for w in model.get_weights()]
        adopted = with_initial_state(model, "trainable")
        assert type(adopted) is type(model) and adopted.name == model.name
        assert_same(
            adopted.predict(x, BATCH, verbose=0), model.predict(x, BATCH, verbose=0)
        )
        ours, theirs = ({id(v) for v in m.variables} for m in (model, adopted))
        assert ours.isdisjoint(theirs)
        started = [entry for layer in owning(adopted) for entry in layer.initial_state]
        for layer in owning(adopted):
            layer.reset_state()
        adopted.compile(keras.optimizers.SGD(0.1), "mse", run_eagerly=True)
        adopted.fit(x, np.ones((BATCH, 1)), BATCH, verbose=0)
        moved = [bool(np.any(entry.value)) for entry in started]
        # Where states are given at the call, there is nothing to learn.
        assert moved.count(False) == (2 if architecture is two_inputs else 0)
        assert_same(model.get_weights(), weights)
        for layer in owning(adopted):
            layer.reset_state()
        # An unregistered cell cannot be loaded, nor can Keras load a model that is
        # used at two depths.
        if architecture not in (cells, nested):
            adopted.save(tmp_path / "adopted.keras")
            loaded = keras.models.load_model(tmp_path / "adopted.keras")
            assert_same(loaded(x), adopted(x))

    @pytest.mark.parametrize("dtype", ["float64", "mixed_bfloat16"])
    @pytest.mark.parametrize("architecture", [sequential, wrapped, masked])
    def test_in_every_precision(self, architecture, dtype):
        model = model_of(architecture, dtype)
        x = inputs_of(model)
        adopted = with_initial_state(model, "trainable")
        assert_same(adopted(x), model(x))
        assert adopted.dtype_policy == model.dtype_policy
        assert {layer.dtype_policy.name for layer in owning(adopted)} == {dtype}

    def test_shared_layers_stay_shared(self):
        model = model_of(nested)
        adopted = with_initial_state(model, "trainable")
        assert len(owning(adopted)) == 2
        assert len(adopted.weights) == len(model.weights) + 4

    @pytest.mark.parametrize(
        ("where", "count"),
        [
            ("first", 1),
            (["first", "third"], 2),
            (lambda layer: layer.units == 3, 2),
        ],
        ids=["name", "names", "predicate"],
    )
    def test_where(self, where, count):
        model = model_of(sequential)
        adopted = with_initial_state(model, 0.5, where)
        assert len(owning(adopted)) == count
        again = with_initial_state(adopted, "trainable")
        assert len(owning(again)) == 3
        (h0,) = (layer.h0 for layer in owning(again)[-1:])
        assert (h0.value.numpy() == (0 if where == "first" else 0.5)).all()

    def test_where_names_a_wrapper_or_a_model(self):
        adopted = with_initial_state(model_of(wrapped), "trainable", ["each", "two"])
        assert len(owning(adopted)) == 4
        adopted = with_initial_state(model_of(nested), "trainable", "inner")
        assert len(owning(adopted)) == 1

    def test_what_is_frozen_stays_frozen(self):
        model = model_of(wrapped)
        model.layers[2].forward_layer.trainable = False
        model.layers[3].backward_layer.cell.trainable = False
        model.layers[1].trainable = False
        adopted = with_initial_state(model, "trainable")
        assert not adopted.layers[2].forward_layer.trainable_variables
        assert len(adopted.layers[3].backward_layer.trainable_variables) == 1
        assert len(adopted.layers[2].backward_layer.trainable_variables) == 4
        assert adopted.trainable and not adopted.layers[1].trainable
        assert not adopted.layers[1].layer.trainable

    def test_a_frozen_model_around_a_layer_that_is_not(self):
        model = model_of(nested)
        (middle,) = (x for x in model.layers if type(x) is type(model))
        middle.trainable = False
        model.get_layer("inner").trainable = True
        adopted = with_initial_state(model, "trainable")
        assert not adopted.get_layer(middle.name).trainable
        assert adopted.get_layer("inner").layers[0].trainable

    def test_bidirectional_keeps_what_its_constructor_overwrites(self):
        model = model_of(masked)
        model.layers[1].forward_layer.zero_output_for_mask = False
        adopted = with_initial_state(model, "trainable")
        assert_same(adopted(inputs_of(model)), model(inputs_of(model)))
        assert not adopted.layers[1].forward_layer.zero_output_for_mask

    def test_is_compiled_likewise(self):
        def loss(y, predicted):  # Neither it nor the metric is registered.
            return keras.ops.mean((y - predicted) ** 2, axis=-1)

        class Metric(keras.metrics.MeanAbsoluteError):
            pass

        model = model_of(two_inputs)
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        model.compile(
            keras.optimizers.Adam(schedule, beta_1=0.8),
            loss,
            loss_weights=[2.0],
            metrics=["mae", Metric(name="own")],
            weighted_metrics=[halved],
            steps_per_execution=2,
            run_eagerly=False,
            jit_compile=False,
        )
        x, y = inputs_of(model), np.ones((BATCH, 1))
        model.fit(x, y, verbose=0)
        before = model.evaluate(x, y, verbose=0, return_dict=True)
        adopted = with_initial_state(model, "trainable")
        assert model.compiled
        assert adopted.evaluate(x, y, verbose=0, return_dict=True) == before
        assert adopted.optimizer.get_config() == model.optimizer.get_config()
        assert adopted.optimizer.iterations == 0 and model.optimizer.iterations == 1
        assert adopted.steps_per_execution == 2 and not adopted.jit_compile
        adopted.fit(x, y, verbose=0)

    @pytest.mark.parametrize("scaled", [True, False])
    def test_loss_scaling(self, scaled):
        model = model_of(sequential, "mixed_float16")
        model.compile("sgd", "mse", auto_scale_loss=scaled)
        adopted = with_initial_state(model)
        assert type(adopted.optimizer) is type(model.optimizer)

    def test_what_cannot_be_rewritten(self):
        class Own(keras.Model):
            def __init__(self):
                super().__init__()
                self.lstm = layers.LSTM(2, name="inside")

            def call(self, x):
                return self.lstm(x)

        own = Own()
        own(np.zeros(SHAPE))
        for model in (own, keras.Sequential([own, layers.LSTM(2)])):
            with pytest.raises(
                ValueError, match=r"inside is made .* class Own .*from_l"
            ):
                with_initial_state(model, "trainable")
        legacy = tf_keras.Sequential([tf_keras.layers.LSTM(2)])
        with pytest.raises(ValueError, match=r"tf_keras\. .*load_keras2_model"):
            with_initial_state(legacy, "trainable")
        model = model_of(sequential)
        for where in ("none", ["first", "none"], lambda _: False):
            with pytest.raises(ValueError, match=r"first \(LSTM\), second \(GRU\)"):
                with_initial_state(model, "trainable", where)

    def test_subclass_of_an_lstm_is_left(self):
        class Own(layers.LSTM):
            pass

        model = keras.Sequential([keras.Input(SHAPE[1:]), Own(2), layers.Dense(1)])
        with pytest.raises(ValueError, match="which are: none"):
            with_initial_state(model)

    def test_in_a_new_process(self, tmp_path):
        adopted = with_initial_state(model_of(wrapped), 0.5)
        adopted.save(tmp_path / "adopted.keras")
        x = inputs_of(adopted)
        np.save(tmp_path / "x.npy", x)
        script = (
            "import keras, keras_init_lstm, numpy as np;"
            "model = keras.models.load_model('adopted.keras');"
            "np.save('y.npy', model(np.load('x.npy')))"
        )
        path = {"PYTHONPATH": ":".join(sys.path)}
        subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, check=True, env=path
        )
        assert_same(np.load(tmp_path / "y.npy"), np.asarray(adopted(x)))


METHODS = {
    "LSTM": InitStateLSTM.from_lstm,
    "GRU": InitStateGRU.from_gru,
    "SimpleRNN": InitStateSimpleRNN.from_simple_rnn,
    "stacked": InitStateRNN.from_rnn,
    "custom": InitStateRNN.from_rnn,
}


class TestFromLayer:
    @for_each_layer(["zeros"])
    def test_outputs_are_equal_to_the_last_bit(self, case):
        rnn = case.reference(case.layer(), activity_regularizer="l2", name="taken")
        rnn.cell.trainable = False
        # The start of its own that the custom cell has is not zero.
        start = None if case.name == "custom" else "trainable"
        taken = METHODS[case.name](rnn, start)
        for training in (False, True):  # With the same dropout.
            assert_same(
                taken(case.inputs, mask=case.mask, training=training),
                rnn(case.inputs, mask=case.mask, training=training),
            )
        owned = len(taken.state_units) if start else 0
        assert taken.name == "taken" and len(taken.trainable_variables) == owned
        assert len(taken.losses) == len(rnn.losses)  # A SimpleRNN of Keras has none.
        assert not taken.cell.trainable

    def test_an_adopted_lstm_does_not_take_the_fused_loop(self):
        assert not InitStateLSTM.from_lstm(layers.LSTM(2)).use_fused
        lstm = InitStateLSTM.from_lstm(layers.LSTM(2), use_fused="auto")
        assert lstm.use_fused == "auto"

    @pytest.mark.parametrize(
        ("layer", "method"),
        [
            (lambda **k: layers.GRU(2, reset_after=False, **k), InitStateGRU.from_gru),
            (
                lambda **k: layers.SimpleRNN(2, activation=lambda a: a / 2, **k),
                InitStateSimpleRNN.from_simple_rnn,
            ),
            (lambda **k: layers.RNN([Cell(3), Cell(2)], **k), InitStateRNN.from_rnn),
        ],
    )
    def test_the_family(self, layer, method):
        x = np.random.default_rng(1).normal(size=SHAPE)
        layer = layer(stateful=True)
        layer.trainable = False
        assert not method(layer, "trainable").built
        layer(x)
        taken = method(layer, "trainable")
        assert_same([taken(x), taken(x)], [layer(x), layer(x)])
        assert not taken.trainable_variables

    def test_what_get_config_forgets(self):
        gru = layers.GRU(2, use_cudnn=False, implementation=1)
        taken = InitStateGRU.from_gru(gru, dropout=0.5)
        assert not taken.use_cudnn and taken.cell.implementation == 1
        assert taken.dropout == 0.5
        assert InitStateLSTM.from_lstm(layers.LSTM(2), use_fused="auto").use_fused

    def test_of_this_package(self):
        start = [0.5, Sampled(0.2, 0.1, seed=1)]
        layer = InitStateLSTM(2, initial_state=start, stateful=True)
        x = np.ones(SHAPE)
        layer(x, training=True)
        layer.assign_initial_state([np.array([1.0, 2.0]), None])
        layer.reset_state()
        taken = InitStateLSTM.from_lstm(layer)
        assert_same(taken.states[0], layer.states[0])
        taken.assign_initial_state([np.array([3.0, 4.0]), None])
        assert (taken.states[0].numpy() == [3, 4]).all()  # Still fresh.
        taken.assign_initial_state([np.array([1.0, 2.0]), None])
        assert_same(taken(x, training=True), layer(x, training=True))

    @pytest.mark.parametrize("given", [tf_keras.layers.LSTM(2), layers.GRU(2), "lstm"])
    def test_another_object_is_refused(self, given):
        legacy = "tf_keras" if isinstance(given, tf_keras.layers.Layer) else ""
        with pytest.raises(ValueError, match=f"`lstm` must be .* `LSTM`.*{legacy}"):
            InitStateLSTM.from_lstm(given)


class TestCopyLayer:
    def test_of_what_adapts(self):
        texts = layers.TextVectorization()
        texts.adapt(["a b c", "a"])
        numbers = layers.Normalization()
        numbers.adapt(np.random.default_rng(1).normal(3, 2, SHAPE))
        assert_same(copy_layer(texts)(["b a"]), texts(["b a"]))
        assert_same(copy_layer(numbers)(np.ones(SHAPE)), numbers(np.ones(SHAPE)))

    def test_of_what_a_configuration_forgets(self):
        for rnn in (layers.LSTM, layers.GRU):
            copied = copy_layer(rnn(2, use_cudnn=False, implementation=1))
            assert copied.use_cudnn is False and copied.cell.implementation == 1

    def test_of_functions_and_operations(self):
        x = keras.Input((3,))
        h = layers.Lambda(lambda a: a * 2, output_shape=(3,))(x)
        h = layers.Dense(2, activation=lambda a: a + 1)(h)
        model = keras.Model(x, keras.ops.exp(h)[:, :1])
        assert_same(copy_layer(model)(np.ones((2, 3))), model(np.ones((2, 3))))

    def test_of_a_sequential_model_of_ones_own(self):
        class Own(keras.Sequential):
            def call(self, *args, **kwargs):
                return super().call(*args, **kwargs) + 1

        model = Own([keras.Input((3,)), layers.Dense(2)])
        copied = copy_layer(model)
        assert type(copied) is Own
        assert_same(copied(np.ones((2, 3))), model(np.ones((2, 3))))

    def test_of_a_context_in_both_directions(self):
        layer = InitStateBidirectional(InitStateLSTM(2, initial_state=[0.5, None]))
        layer(np.ones(SHAPE))
        assert_same(copy_layer(layer)(np.ones(SHAPE)), layer(np.ones(SHAPE)))


def keras2_sequential(rnn, **kwargs):
    return tf_keras.Sequential(
        [tf_keras.Input(SHAPE[1:], **kwargs), rnn, tf_keras.layers.Dense(1)]
    )


def keras2_functional():
    kl = tf_keras.layers
    x, start = tf_keras.Input(SHAPE[1:]), tf_keras.Input((2,))
    inner = tf_keras.Sequential(
        [tf_keras.Input(SHAPE[1:]), kl.GRU(FEATURES, return_sequences=True)]
    )
    h = inner(inner(x))
    h = kl.LSTM(2, return_sequences=True)(h, initial_state=[start, start])
    return tf_keras.Model([x, start], kl.Dense(1)(kl.LSTM(2)(h)))


KERAS2 = {
    "LSTM": lambda: keras2_sequential(tf_keras.layers.LSTM(2, implementation=1)),
    "GRU": lambda: keras2_sequential(tf_keras.layers.GRU(2, reset_after=False)),
    "cells": lambda: keras2_sequential(
        tf_keras.layers.RNN([tf_keras.layers.LSTMCell(3), tf_keras.layers.GRUCell(2)])
    ),
    "Bidirectional": lambda: keras2_sequential(
        tf_keras.layers.Bidirectional(tf_keras.layers.LSTM(2))
    ),
    "stateful": lambda: keras2_sequential(
        tf_keras.layers.LSTM(2, stateful=True), batch_size=BATCH
    ),
    "input_shape": lambda: tf_keras.Sequential(
        [
            tf_keras.layers.Embedding(5, 3, mask_zero=True, input_shape=(TIMESTEPS,)),
            tf_keras.layers.LSTM(2),
        ]
    ),
    "functional": keras2_functional,
}


class TestKeras2Files:
    @pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
    @pytest.mark.parametrize("suffix", ["h5", "keras"])
    @pytest.mark.parametrize("make", KERAS2.values(), ids=list(KERAS2))
    def test_predict_what_they_did(self, make, suffix, tmp_path):
        old = make()
        rng = np.random.default_rng(2)
        old.set_weights([rng.normal(0, 0.5, w.shape) for w in old.get_weights()])
        old.compile("adam", "mse", metrics=["mae"])
        path = tmp_path / f"old.{suffix}"
        old.save(path)
        content = path.read_bytes()
        x = [rng.integers(0, 5, (BATCH, *i.shape[1:])) * 1.0 for i in old.inputs]
        x = x if len(x) > 1 else x[0]
        model = load_keras2_model(path)
        assert path.read_bytes() == content
        adopted = with_initial_state(model, "trainable")
        assert owning(adopted)
        predicted = adopted(x)
        assert_same(predicted, model(x))
        assert_same(predicted, old(x), tolerance=1e-6)

    def test_what_keras_3_cannot_do(self, tmp_path):
        old = keras2_sequential(
            tf_keras.layers.LSTM(2, time_major=True, name="swapped")
        )
        old.save(tmp_path / "old.keras")
        with pytest.raises(ValueError, match="swapped has `time_major=True`"):
            load_keras2_model(tmp_path / "old.keras")
        with pytest.raises(ValueError, match=r"`path` .*\.h5 or \.keras"):
            load_keras2_model(tmp_path / "saved_model")
