"""Cells that compute something else than their class run in Keras's loop."""

import functools

import keras
import pytest
from keras import ops

from backends import FUSES, compiled, tf
from keras_init_lstm import InitStateLSTM, InitStateSimpleRNN
from loop_cases import batch
from models import FEATURES, UNITS
from oracles import across_programs, assert_same, reference_of, to_numpy

if not FUSES:
    pytest.skip("a backend without a fused loop", allow_module_level=True)


# Changes of a built layer, of this package or of Keras, after which it computes
# something else than its class.


class Doubling(keras.layers.LSTMCell):
    def call(self, inputs, states, training=False):
        h, (_, c) = super().call(inputs, states, training=training)
        return 2 * h, [2 * h, c]


def of_another_class(layer):
    cell = Doubling(UNITS)
    cell.build((None, FEATURES))
    cell.set_weights(layer.cell.get_weights())
    layer._tracker.unlock()
    layer.cell = cell


def of_another_class_later(layer):
    layer.cell.__class__ = Doubling


def with_another_call(layer):
    def call(inputs, states, training=False):
        h, (_, c) = keras.layers.LSTMCell.call(layer.cell, inputs, states, training)
        return 2 * h, [2 * h, c]

    layer.cell.call = call


def with_another_dropout(layer):
    layer.cell.dropout = 0.5
    layer.cell.get_dropout_mask = lambda x: 3 * ops.ones_like(x)


def with_all_dropped(layer):
    layer.cell.dropout = 1.0  # Keras's cell then drops nothing.


def with_another_activation(layer):
    layer.cell.activation = keras.activations.elu


def with_another_recurrent_activation(layer):
    layer.cell.recurrent_activation = keras.activations.softplus


def with_recurrent_dropout_later(layer):
    layer.cell.recurrent_dropout = 0.5  # Keras's cell then drops nothing.


def with_a_bias_not_in_use(layer):
    layer.cell.use_bias = False


def with_a_kernel_computed(layer):
    layer.cell._tracker.unlock()
    layer.cell.kernel = ops.tanh(3 * layer.cell.kernel.value)


def with_a_cell_of_another_dtype(layer):
    layer.cell.dtype_policy = "mixed_float16"


CHANGES = [
    of_another_class,
    of_another_class_later,
    with_another_call,
    with_another_dropout,
    with_all_dropped,
    with_another_activation,
    with_another_recurrent_activation,
    with_recurrent_dropout_later,
    with_a_bias_not_in_use,
    with_a_kernel_computed,
    with_a_cell_of_another_dtype,
]


class TestChangedCells:
    @pytest.mark.parametrize("in_graph", [False, True] if tf else [False])
    @pytest.mark.parametrize("change", CHANGES)
    def test_is_called(self, taken, change, in_graph):
        # On PyTorch, Keras's LSTM would run a kernel and not call its cell.
        layer = InitStateLSTM(UNITS, initial_state=0.5, use_cudnn=False)
        x = batch()
        layer.build(x.shape)
        layer.cell.bias.assign_add(ops.ones_like(layer.cell.bias))
        reference = reference_of(layer, use_cudnn=False)
        states = layer.get_initial_state(len(x))
        before = to_numpy(layer(x, training=True))
        assert len(taken) == 1
        results = []
        for each, kwargs in ((layer, {}), (reference, {"initial_state": states})):
            change(each)
            call = functools.partial(each, training=True, **kwargs)
            results.append(to_numpy((compiled(call) if in_graph else call)(x)))
        assert_same(*results, tolerance=across_programs())
        assert len(taken) == 1
        if change not in (with_all_dropped, with_recurrent_dropout_later):
            assert abs(results[0] - before).max() > 1e-4
        layer.use_fused = True
        with pytest.raises(ValueError, match="does not support .* use_fused=True"):
            layer(x, training=True)

    def test_is_called_in_a_subclass_that_replaces_it(self, taken):
        class Ours(InitStateLSTM):
            def __init__(self, units, **kwargs):
                super().__init__(units, **kwargs)
                self.cell = Doubling(units)

        layer, x = Ours(UNITS, initial_state=0.5), batch()
        rnn = keras.layers.RNN(Doubling(UNITS))
        layer.build(x.shape), rnn.build(x.shape)
        rnn.set_weights(layer.cell.get_weights())
        states = [ops.full((len(x), UNITS), 0.5)] * 2
        assert_same(layer(x), rnn(x, initial_state=states))
        assert not taken

    def test_adds_its_losses(self, taken):
        layer, x = InitStateLSTM(UNITS), batch()
        layer.build(x.shape)
        reference = reference_of(layer, use_cudnn=False)
        for each in (layer, reference):
            each.cell.activity_regularizer = keras.regularizers.L2(0.1)
            each(x)
        assert_same(layer.losses, reference.losses)
        assert layer.losses and not taken

    def test_of_a_simple_rnn_may_use_its_bias_or_not(self, taken):
        layer, x = InitStateSimpleRNN(UNITS), batch()
        layer.build(x.shape)
        layer.cell.bias.assign_add(ops.ones_like(layer.cell.bias))
        reference = reference_of(layer)
        for each in (layer, reference):
            each.cell.use_bias = False  # It asks whether there is one.
        assert_same(layer(x), reference(x))
        assert not taken

    def test_may_be_quantized(self):
        for make in (InitStateLSTM, keras.layers.LSTM):
            with pytest.raises(NotImplementedError):
                make(UNITS, dtype="int8_from_float32")(batch())

    def test_of_variables_that_are_not_cast(self):
        class Around(keras.layers.Layer):
            def __init__(self, inner):
                super().__init__(dtype="mixed_bfloat16")
                self.inner = inner

            def call(self, x):
                return self.inner(x)

        options = {"dtype": "mixed_bfloat16", "autocast": False}
        layer, x = InitStateLSTM(UNITS, use_fused=True, **options), batch()
        with pytest.raises(ValueError, match="not cast to the dtype of the layer"):
            Around(layer)(x)
        layer.use_fused = "auto"
        assert_same(Around(layer)(x), Around(reference_of(layer, **options))(x))
