"""Copies of any layer or model."""

import keras
import numpy as np
import pytest
from keras import layers

from keras_init_lstm import InitStateBidirectional, InitStateLSTM
from keras_init_lstm._copies import copy_layer
from models import SHAPE, normal
from oracles import assert_same


class TestCopyLayer:
    def test_normalization(self):
        numbers = layers.Normalization()
        numbers.adapt(3 + 2 * normal(*SHAPE))
        assert_same(copy_layer(numbers)(np.ones(SHAPE)), numbers(np.ones(SHAPE)))

    @pytest.mark.tensorflow
    def test_a_vocabulary(self):
        texts = layers.TextVectorization()
        texts.adapt(["a b c", "a"])
        assert_same(copy_layer(texts)(["b a"]), texts(["b a"]))

    def test_attributes_that_a_configuration_omits(self):
        for rnn in (layers.LSTM, layers.GRU):
            copied = copy_layer(rnn(2, use_cudnn=False, implementation=1))
            assert copied.use_cudnn is False and copied.cell.implementation == 1

    def test_functions_and_operations(self):
        x = keras.Input((3,))
        h = layers.Lambda(lambda a: a * 2, output_shape=(3,))(x)
        h = layers.Dense(2, activation=lambda a: a + 1)(h)
        model = keras.Model(x, keras.ops.exp(h)[:, :1])
        assert_same(copy_layer(model)(np.ones((2, 3))), model(np.ones((2, 3))))

    def test_a_subclass_of_sequential(self):
        class Own(keras.Sequential):
            def call(self, *args, **kwargs):
                return super().call(*args, **kwargs) + 1

        model = Own([keras.Input((3,)), layers.Dense(2)])
        copied = copy_layer(model)
        assert type(copied) is Own
        assert_same(copied(np.ones((2, 3))), model(np.ones((2, 3))))

    def test_layers_that_are_built_by_a_call(self):
        class Inner(layers.Layer):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.unused = layers.Dense(2)
                self.model = keras.Sequential([layers.Dense(2)])

            def call(self, indices):
                return self.model(keras.ops.take(keras.ops.eye(3), indices, axis=0))

        class Outer(keras.Model):
            def __init__(self, **kwargs):
                super().__init__(**kwargs)
                self.inner = Inner()

            def call(self, given):
                return self.inner(given["indices"]) + given["x"]

        given = {"indices": np.array([2, 0, 1]), "x": normal(3, 2)}
        model = Outer()
        want = model(given)
        copied = copy_layer(model)
        assert len(copied.weights) == 2
        assert_same(copied(given), want)

    def test_a_context_in_both_directions(self):
        layer = InitStateBidirectional(InitStateLSTM(2, initial_state=[0.5, None]))
        layer(np.ones(SHAPE))
        assert_same(copy_layer(layer)(np.ones(SHAPE)), layer(np.ones(SHAPE)))
