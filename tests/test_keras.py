"""One test for each private attribute of Keras that the package uses.

A failing test names what a new release of Keras has changed.
"""

import importlib
import importlib.util
import random

import keras
import numpy as np
import pytest
from keras import layers

from backends import RELEASE
from keras_init_lstm import _keras
from keras_init_lstm.backend import backend
from oracles import assert_same, to_numpy


@pytest.fixture
def model():
    inner = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="inner")])
    model = keras.Sequential([inner, layers.Dense(1, name="outer")])
    model.compile("sgd", loss=_loss, metrics=[_loss])
    return model


def _loss(y, outputs):
    return keras.ops.mean(y - outputs)


def test_flatten_layers_lists_the_layers_inside(model):
    class Holder(layers.Layer):
        def __init__(self):
            super().__init__()
            self.held = [model]

    holder = Holder()
    assert {"inner", "outer"} <= {x.name for x in _keras.layers_within(holder)}
    assert holder in _keras.layers_within(holder)
    only = _keras.layers_within(holder, include_self=False, recursive=False)
    assert only == [model]


def test_forget_layer_removes_a_layer(model):
    holder = layers.TimeDistributed(model)
    before = len(holder.weights)
    extra = layers.Dense(2)
    extra.build((1, 2))
    holder.extra = extra
    assert extra in _keras.layers_within(holder)
    del holder.extra
    _keras.forget_layer(holder, extra)
    assert extra not in _keras.layers_within(holder)
    assert len(holder.weights) == before


def test_trainable_is_kept_in_an_attribute(model):
    _keras.set_trainable_flag(model, False)
    assert not model.trainable
    assert all(inner.trainable for inner in model.layers)


@pytest.mark.parametrize("cls", [layers.LSTMCell, layers.GRUCell, layers.Dense])
def test_methods_are_in_the_class(cls):
    layer = cls(2)
    assert not _keras.has_replaced_methods(layer)
    x = keras.ops.ones((1, 3))
    layer(x) if cls is layers.Dense else layers.RNN(layer)(x[:, None])
    assert not _keras.has_replaced_methods(layer)
    layer.call = layer.call
    assert _keras.has_replaced_methods(layer)


def test_a_clone_is_not_compiled(model):
    clone = _keras.clone_uncompiled(model, None, lambda layer: layer)
    assert not clone.compiled and model.compiled
    assert clone.layers == model.layers
    with pytest.raises(ZeroDivisionError):
        _keras.clone_uncompiled(model, None, lambda _: 1 / 0)
    assert model.compiled


def test_arguments_are_saved_by_their_names():
    class WithoutConfig(layers.Layer):
        def __new__(cls, **kwargs):
            return super().__new__(cls, **_keras.named_arguments(kwargs))

        def __init__(self, factor, **kwargs):
            super().__init__(**kwargs)

    policy = keras.DTypePolicy("mixed_bfloat16")
    assert _keras.named_arguments({"dtype": None}) == {"dtype": None}
    config = WithoutConfig(factor=3, dtype=policy).get_config()
    assert config["factor"] == 3
    assert WithoutConfig.from_config(config).dtype_policy == policy


def test_errors_of_loading_name_the_layer_and_the_reason():
    dense = layers.Dense(1, name="wrong")
    config = keras.Sequential([layers.Dense(1), dense]).get_config()
    config["layers"][-1]["config"]["colour"] = "red"
    with pytest.raises(TypeError) as refused:
        keras.Sequential.from_config(config)
    name, reason = _keras.layer_and_reason(refused.value)
    assert name == "wrong" and "colour" in reason and "config" not in reason
    assert _keras.layer_and_reason(KeyError("unknown")) == (None, "'unknown'")


def test_values_are_written_back_within_fit(model):
    kernels = []

    class Reads(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            _keras.write_back(self.model)
            kernels.append(to_numpy(self.model.layers[-1].kernel))

    x, y = keras.ops.ones((6, 3)), keras.ops.ones((6, 1))
    model.fit(x, y, batch_size=2, verbose=0, callbacks=[Reads()])
    assert len(kernels) == 3 and (kernels[0] != kernels[2]).all()


def test_exporters_to_onnx_exist():
    assert importlib.util.find_spec(_keras.ONNX_EXPORTERS[0])


def test_exporters_by_trace_have_the_signature_in_a_variable():
    for name in _keras._EXPORTERS_BY_TRACE:
        module = importlib.import_module(name)
        function = getattr(module, f"export_{name.rpartition('.')[2]}")
        assert "input_signature" in function.__code__.co_varnames
    assert not _keras.exports_any_length()


def test_compile_config_holds_functions(model):
    arguments = _keras.compile_arguments(model)
    assert arguments["loss"] is _loss and arguments["metrics"] == [_loss]
    assert {"optimizer", "weighted_metrics", "run_eagerly"} <= arguments.keys()


def test_a_trace_builds_what_a_call_builds():
    dense = layers.Dense(2)
    spec = _keras.trace(lambda x: dense(2 * x), keras.KerasTensor((None, 3)))
    assert spec.shape == (None, 2)
    assert dense.built and to_numpy(dense.kernel).any()


def test_output_shape_of_a_lambda_is_kept():
    layer = layers.Lambda(lambda x: x, output_shape=(3,))
    assert _keras.output_shape_of(layer) == (3,)


def test_bidirectional_decides_in_the_known_methods():
    """`tests/layers/test_bidirectional.py` tests the behaviour."""
    new_enough = RELEASE >= (3, 15)
    assert len(_keras.DECIDES_TO_FUSE_DIRECTIONS) == (2 if new_enough else 0)


def test_a_variable_keeps_its_value_in_an_attribute():
    variable = keras.Variable([1.0])
    assert not _keras.is_empty(variable)
    variable._value = None
    assert _keras.is_empty(variable)


def test_fit_begins_at_the_initial_epoch(model):
    class Begins(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            _keras.begin_at_epoch(self.model, 2)

    x, y = keras.ops.ones((2, 3)), keras.ops.ones((2, 1))
    history = model.fit(x, y, epochs=3, verbose=0, callbacks=[Begins()])
    assert history.epoch == [2]


def test_the_order_of_an_epoch_is_drawn_from_its_number_or_a_generator():
    class Data(keras.utils.PyDataset):
        def __init__(self):
            super().__init__()
            self.orders = []

        def __len__(self):
            return 20

        def on_epoch_begin(self):
            self.orders.append([])

        def __getitem__(self, index):
            self.orders[-1].append(index)
            return np.ones((2, 3), "float32"), np.ones((2, 1), "float32")

    class Restores(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            data = _keras.data_of_fit()
            assert data.py_dataset is given
            if epoch == 0:
                self.state = random.getstate(), _keras.epoch_of_data(data)
            if epoch == 2:
                random.setstate(self.state[0])
                if self.state[1] is not None:
                    _keras.set_epoch_of_data(data, self.state[1])

    given = Data()
    model = keras.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    given.orders.append([])  # From before the first epoch.
    model.fit(given, epochs=3, shuffle=True, verbose=0, callbacks=[Restores()])
    first, second, third = given.orders[-3:]
    assert first == third != second
    assert _keras.data_of_fit() is None


def test_symbolic_build_builds_the_metrics(model):
    before = len(model.metrics_variables)
    x, y = keras.ops.ones((2, 3)), keras.ops.ones((2, 1))
    _keras.build_metrics(model, (x, y))
    assert len(model.metrics_variables) > before


def test_two_lists_hold_the_layers_of_a_functional_model():
    x = keras.Input((3,))
    model = keras.Model(x, layers.Dense(1)(layers.Dense(2)(x)))
    for name in _keras.LISTS_OF_LAYERS:
        assert vars(model)[name] == model.layers


def test_a_mask_is_kept_with_its_tensor():
    assert _keras.mask_of(keras.Input((3,))) is None
    words = layers.Embedding(5, 2, mask_zero=True)(keras.Input((3,), dtype="int32"))
    assert tuple(_keras.mask_of(words).shape) == (None, 3)


@pytest.mark.filterwarnings("ignore:.*does not support masking")
def test_rnn_tells_whether_it_passes_its_mask_on():
    words = layers.Embedding(5, 2, mask_zero=True)(keras.Input((3,), dtype="int32"))
    for layer in (
        layers.LSTM(2, return_sequences=True),
        layers.Bidirectional(layers.GRU(2, return_sequences=True)),
    ):
        handed_on = _keras.mask_of(layer(words)) is not None
        assert handed_on == _keras.rnn_hands_mask_on()


@pytest.mark.tensorflow  # PyTorch calls the layer twice for the shapes.
def test_a_scope_knows_the_outer_scope():
    found = []

    class Spy(layers.Layer):
        def call(self, x):
            found.append(_keras.infers_shapes())
            return x

    Spy()(keras.Input((3,)))
    Spy()(keras.ops.ones((2, 3)))
    assert found == [True, False]


@pytest.mark.parametrize("go_backwards", [False, True])
def test_rnn_loops_over_several_tensors(go_backwards):
    x = np.arange(6, dtype="float32").reshape(1, 3, 2)

    def step(inputs, states):
        total = states[0] + inputs[0] * inputs[1]
        return total, [total]

    start = [keras.ops.ones((1, 2))]
    inputs = tuple(map(keras.ops.convert_to_tensor, (x, 2 * np.ones_like(x[..., :1]))))
    options = {"go_backwards": go_backwards, "input_length": 3}
    last, outputs, states = _keras.rnn(step, inputs, start, **options)
    order = x[:, ::-1] if go_backwards else x
    assert_same(outputs, np.float32(1 + np.cumsum(2 * order, axis=1)))
    assert_same([last, *states], [to_numpy(outputs)[:, -1]] * 2)


def test_dropout_masks_are_drawn_for_one_loop():
    layer = layers.LSTM(2, dropout=0.5, recurrent_dropout=0.5, seed=1)
    layer.build((3, 4, 2))
    x, state = keras.ops.ones((3, 4, 2)), keras.ops.ones((3, 2))
    with _keras.dropout_masks(layer, x, [state, state]):
        first = layer.cell.get_dropout_mask(x[:, 0])
        assert_same(layer.cell.get_dropout_mask(x[:, 1]), first)
        assert layer.cell.get_recurrent_dropout_mask(state) is not None
    assert layer.cell._dropout_mask is layer.cell._recurrent_dropout_mask is None


def test_cells_tell_whether_they_take_training():
    assert _keras.takes_training(layers.LSTMCell(2))
    assert not _keras.takes_training(object())


def test_a_functional_model_calls_a_given_function(model):
    inputs = keras.Input((3,))
    functional = keras.Model(inputs, model(inputs) + 1.0)
    called = []

    def call(operation, *args, **kwargs):
        called.append(operation)
        return operation(*args, **kwargs)

    x = np.ones((2, 3), "float32")
    got = _keras.run_through(functional, keras.ops.convert_to_tensor(x), call)
    assert_same(got, functional(x))
    assert called[0] is model and len(called) == 2


def test_a_stateless_scope_knows_the_outer_scope():
    assert not _keras.in_stateless_scope()
    with keras.StatelessScope():
        assert _keras.in_stateless_scope()
    assert not _keras.in_stateless_scope()


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="of PyTorch alone")
def test_a_variable_of_pytorch_can_take_a_new_tensor():
    variable = backend.Variable("zeros", shape=(2,), trainable=False)
    before = variable.value
    variable.assign(np.ones(2))
    assert_same(before, np.zeros(2, "float32"))
    assert_same(variable, np.ones(2, "float32"))


def test_the_cell_of_a_conv_lstm():
    assert _keras.is_conv_lstm_cell(layers.ConvLSTM2D(2, 3).cell)
    assert not _keras.is_conv_lstm_cell(layers.LSTMCell(2))
