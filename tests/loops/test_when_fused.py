"""When the fused loop runs, and what `use_fused=True` raises where it can't."""

import keras
import numpy as np
import pytest

from backends import FUSES, LOOP, in_a_fresh_process, tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.loops import _loop as loop
from loop_cases import TIMESTEPS, batch, outcome
from models import FEATURES, UNITS, normal
from oracles import assert_same, reference_of, to_numpy

if not FUSES:
    pytest.skip("a backend without a fused loop", allow_module_level=True)

TRAINING = {"training": True}


class TestWhenItRuns:
    @pytest.mark.parametrize("make", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN])
    def test_in_fit_evaluate_and_predict(self, taken, make):
        model = keras.Sequential([keras.Input((None, FEATURES)), make(UNITS)])
        model.compile("sgd", "mse")
        assert not taken
        model.fit(batch(), np.zeros((4, UNITS)), verbose=0)
        assert len(taken) == 1
        model.evaluate(batch(), np.zeros((4, UNITS)), verbose=0)
        assert len(taken) == 2
        model.predict(batch(), verbose=0)
        assert len(taken) == 3

    @pytest.mark.parametrize(
        ("arguments", "timesteps", "kwargs", "expected"),
        [
            ({}, TIMESTEPS, {}, True),
            ({"use_fused": False}, TIMESTEPS, {}, False),
            ({"use_fused": True}, 1, {}, True),
            ({}, 8, {}, True),
            ({}, 7, {}, False),
            ({}, 7, {"mask": np.ones((4, 7), bool)}, LOOP.few_if_masked),
            ({}, 7, {"reset_mask": np.ones((4, 7), bool)}, LOOP.few_if_masked),
            ({"unroll": True}, TIMESTEPS, {}, False),
            ({"activation": "relu"}, TIMESTEPS, {}, LOOP.runs("lstm", "relu")),
            ({"activation": "elu"}, TIMESTEPS, {}, False),
            (
                {"recurrent_activation": "hard_sigmoid"},
                TIMESTEPS,
                {},
                LOOP.runs("lstm", recurrent_activation="hard_sigmoid"),
            ),
            ({"recurrent_activation": "gelu"}, TIMESTEPS, {}, False),
            ({"implementation": 1}, TIMESTEPS, TRAINING, True),
            (
                {"implementation": 1, "dropout": 0.5, "use_cudnn": False},
                TIMESTEPS,
                TRAINING,
                LOOP.drops,
            ),
            ({"dtype": "mixed_bfloat16"}, TIMESTEPS, {}, False),
            ({"dtype": "mixed_bfloat16", "use_fused": True}, TIMESTEPS, {}, True),
            ({"dropout": 0.5}, TIMESTEPS, TRAINING, True),
            ({"recurrent_dropout": 0.5}, TIMESTEPS, TRAINING, LOOP.drops),
            (
                {"dropout": 0.5, "recurrent_dropout": 0.5},
                TIMESTEPS,
                TRAINING,
                LOOP.drops,
            ),
            ({"recurrent_dropout": 1.0}, TIMESTEPS, TRAINING, False),
            ({"recurrent_dropout": 0.5}, TIMESTEPS, {}, True),
            ({"autocast": False, "dtype": "float64"}, TIMESTEPS, {}, False),
        ],
        ids=str,
    )
    def test_in_an_eager_call(self, taken, arguments, timesteps, kwargs, expected):
        InitStateLSTM(UNITS, **arguments)(batch(timesteps=timesteps), **kwargs)
        assert bool(taken) == expected

    @pytest.mark.parametrize(
        ("make", "arguments", "kwargs", "expected"),
        [
            (InitStateGRU, {}, {}, True),
            (InitStateGRU, {"reset_after": False}, {}, LOOP.resets_before),
            (InitStateGRU, {"use_fused": False}, {}, False),
            (
                InitStateGRU,
                {"recurrent_activation": "relu"},
                {},
                LOOP.runs("gru", recurrent_activation="relu"),
            ),
            (InitStateGRU, {"recurrent_activation": "elu"}, {}, False),
            (InitStateGRU, {"recurrent_dropout": 0.5}, TRAINING, LOOP.drops),
            (InitStateSimpleRNN, {}, {}, True),
            (
                InitStateSimpleRNN,
                {"activation": "relu"},
                {},
                LOOP.runs("simple_rnn", "relu"),
            ),
            (InitStateSimpleRNN, {"activation": "elu"}, {}, False),
            (InitStateSimpleRNN, {"dropout": 0.5}, TRAINING, True),
            (InitStateSimpleRNN, {"recurrent_dropout": 0.5}, TRAINING, LOOP.drops),
            (InitStateSimpleRNN, {"recurrent_dropout": 1.0}, TRAINING, False),
            (InitStateSimpleRNN, {"recurrent_dropout": 0.5}, {}, True),
        ],
        ids=str,
    )
    def test_other_layers(self, taken, make, arguments, kwargs, expected):
        make(UNITS, **arguments)(batch(), **kwargs)
        assert bool(taken) == expected


@pytest.mark.tensorflow
class TestWhenItRunsInTensorFlow:
    @pytest.mark.parametrize(("units", "expected"), [(255, 0), (256, 1)])
    def test_in_fit_on_any_lengths(self, taken, units, expected):
        model = keras.Sequential([keras.Input((None, FEATURES)), InitStateLSTM(units)])
        model.compile("sgd", "mse")

        def data():
            for timesteps in (9, 10):
                yield batch(timesteps=timesteps), np.zeros((4, units), "float32")

        specs = tf.TensorSpec((None, None, FEATURES)), tf.TensorSpec((None, units))
        batches = tf.data.Dataset.from_generator(data, output_signature=specs)
        model.fit(batches, verbose=0)
        assert len(taken) == expected
        model.evaluate(batches, verbose=0)
        assert len(taken) == expected

    @pytest.mark.parametrize("use_fused", ["auto", True])
    def test_in_several_steps_per_execution(self, taken, use_fused):
        x, y, found = batch(9), normal(9, UNITS), []
        weights = None
        for each in (
            InitStateLSTM(UNITS, use_fused=use_fused),
            keras.layers.LSTM(UNITS),
        ):
            model = keras.Sequential([keras.Input((TIMESTEPS, FEATURES)), each])
            model.compile("sgd", "mse", steps_per_execution=3)
            weights = weights or model.get_weights()
            model.set_weights(weights)
            options = {"batch_size": 2, "verbose": 0}
            history = model.fit(x, y, shuffle=False, **options).history["loss"]
            evaluated = model.evaluate(x, y, **options)
            found.append(
                [history, evaluated, model.predict(x, **options), model.get_weights()]
            )
        assert_same(*found, tolerance=1e-6)
        assert len(taken) >= 3

    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("timesteps", [None, TIMESTEPS])
    @pytest.mark.parametrize("use_fused", ["auto", True])
    def test_in_a_function_of_the_user(self, taken, training, timesteps, use_fused):
        layer = InitStateLSTM(UNITS, use_fused=use_fused)
        spec = tf.TensorSpec((None, timesteps, FEATURES))
        call = tf.function(
            lambda x: layer(x, training=training), input_signature=[spec]
        )
        got = call(batch())
        assert bool(taken) == (use_fused is True or timesteps is not None)
        assert_same(got, reference_of(layer)(batch()), tolerance=1e-6)

    def test_not_with_a_gpu(self, taken, monkeypatch):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
        loop.available.cache_clear()
        try:
            InitStateLSTM(UNITS)(batch())
            assert not taken
        finally:
            loop.available.cache_clear()

    def test_in_predict_under_a_strategy(self, taken):
        with tf.distribute.MirroredStrategy(["CPU:0"]).scope():
            layer = InitStateLSTM(UNITS)
            model = keras.Sequential([keras.Input((TIMESTEPS, FEATURES)), layer])
            model.compile("sgd", "mse")
        assert not taken
        model.predict(batch(), verbose=0)
        assert len(taken) == 1
        model.evaluate(batch(), np.zeros((4, UNITS)), verbose=0)
        assert len(taken) == 2


@pytest.mark.tensorflow
def test_the_plain_loop_runs_without_private_names_of_tensorflow():
    script = """
import sys
import keras, numpy as np, tensorflow
for module in sys.argv[1:]:
    assert module in sys.modules  # As it is called in this TensorFlow.
    sys.modules[module] = None
import keras_init_lstm
x = np.ones((2, 10, 3), "float32")
layer = keras_init_lstm.InitStateLSTM(2, initial_state=0.5)
plain = keras_init_lstm.InitStateLSTM.from_keras(layer, use_fused=False)
layer.build(x.shape)
plain.build(x.shape)
plain.set_weights(layer.get_weights())
print(bool((layer(x) == plain(x)).numpy().all()))
layer.use_fused = True
try:
    layer(x)
except ValueError as error:
    print("does not support a TensorFlow that" in str(error))
"""
    modules = (
        "tensorflow.python.eager.forwardprop_util",
        "tensorflow.python.framework.op_callbacks",
    )
    assert in_a_fresh_process(script, *modules).split() == ["True", "True"]


def relu(x):
    """Not what Keras has by this name."""
    return keras.ops.relu(x) / 2


class TestErrors:
    @pytest.mark.parametrize("value", ["fast", None, 1.5])
    def test_another_value(self, value):
        with pytest.raises(ValueError, match="`use_fused` must be .* Received: "):
            InitStateLSTM(UNITS, use_fused=value)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"activation": "elu"}, "activation=elu"),
            ({"recurrent_activation": "gelu"}, "recurrent_activation=gelu"),
            ({"activation": relu}, "activation=custom relu"),
            ({"unroll": True}, "unroll=True"),
            ({"use_cudnn": True}, "use_cudnn=True"),
            ({"dropout": 1.0}, "dropout=1.0"),
            ({"recurrent_dropout": 1.0}, "recurrent_dropout=1.0"),
            ({"autocast": False, "dtype": "float64"}, "inputs of dtype float32"),
        ],
    )
    def test_unsupported_calls(self, arguments, message):
        layer = InitStateLSTM(
            UNITS, use_fused=True, stateful=True, initial_state=0.5, **arguments
        )
        with pytest.raises(ValueError, match=f"{message}.*Received: use_fused=True"):
            layer(batch(), training=True)
        assert_same(layer.states[0], np.full((4, UNITS), 0.5, layer.dtype))

    def test_in_training_alone_changes_nothing(self):
        layer = InitStateLSTM(
            UNITS, recurrent_dropout=1.0, use_fused=True, initial_state="sampled"
        )
        model = keras.Sequential([keras.Input((TIMESTEPS, FEATURES)), layer])
        model.compile("sgd", "mse")
        before = [to_numpy(v) for v in model.variables]
        with pytest.raises(ValueError, match="use_fused=True"):
            model.fit(batch(), np.zeros((4, UNITS)), verbose=0)
        assert_same([to_numpy(v) for v in model.variables], before)
        layer.use_fused = "auto"
        for rows in (4, 3):
            layer(batch(rows), training=True)
        model.fit(batch(), np.zeros((4, UNITS)), verbose=0)

    @pytest.mark.tensorflow
    def test_use_cudnn_without_a_gpu_raises_as_in_lstm(self):
        got = outcome(lambda: InitStateLSTM(UNITS, use_cudnn=True)(batch()))
        assert got is outcome(lambda: keras.layers.LSTM(UNITS, use_cudnn=True)(batch()))


def test_a_loop_of_a_second_base_class_runs(taken):
    class Negating(keras.layers.LSTM):
        def inner_loop(self, *args, **kwargs):
            last, outputs, states = super().inner_loop(*args, **kwargs)
            return -last, -outputs, states

    class Ours(InitStateLSTM, Negating):
        pass

    layer, x = Ours(UNITS), batch()
    layer.build(x.shape)
    assert_same(layer(x), -reference_of(layer)(x))
    assert not taken


def test_subclasses_that_use_the_loop_have_the_fused_one(taken):
    class Ours(InitStateLSTM):
        activation = keras.activations.relu  # Not the cell's, which computes.

        def call(self, *args, **kwargs):
            return 2 * super().call(*args, **kwargs)

        def inner_loop(self, *args, **kwargs):
            last, outputs, states = super().inner_loop(*args, **kwargs)
            return -last, -outputs, states

    layer, x = Ours(UNITS, kernel_constraint="non_neg"), batch()
    layer.build(x.shape)
    assert_same(layer(x), -2 * reference_of(layer)(x), tolerance=1e-6)
    assert len(taken) == 1
