"""Sizes of batches in the fused loop of TensorFlow, and what is compiled for them."""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.loops import tensorflow, tensorflow_loop
from loop_cases import TIMESTEPS, batch, gradients_by_weights_and_inputs
from models import FEATURES, UNITS, normal
from oracles import assert_same, reference_of

pytestmark = pytest.mark.tensorflow


class TestBatches:
    @pytest.mark.parametrize("make", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN])
    def test_one_row_after_others(self, make):
        layer = make(UNITS, use_fused=True)
        for rows in (4, 3):  # After this, the loop is traced for any number of rows.
            layer(batch(rows), training=True)
        x, found = batch(1), []
        for each in (layer, reference_of(layer)):
            step = tf.function(functools.partial(gradients_by_weights_and_inputs, each))
            found.append(step(tf.constant(x), training=True))
        assert_same(*found, tolerance=1e-5)

    @given(st.integers(0, 5000), st.integers(0, 5000))
    def test_batch_sizes_are_rounded_up(self, rows, other):
        rounded = tensorflow_loop.rounded_up(rows)
        assert max(rows, 1) <= rounded <= max(1.25 * rows, 8)
        assert tensorflow_loop.rounded_up(rounded) == rounded
        assert int(tensorflow_loop.rounded_up(tf.constant(rows))) == rounded
        assert tensorflow_loop.rounded_up(max(rows, other)) >= rounded

    def test_few_sizes_are_compiled(self):
        sizes = {tensorflow_loop.rounded_up(rows) for rows in range(1025)}
        assert len(sizes) == 8 + 4 * 7

    # In one block or more, with time put in front by XLA or by TensorFlow, and for a
    # batch size that is known or not.
    @pytest.mark.parametrize(
        ("rows", "make", "options", "most_for_xla", "known"),
        [
            (1, InitStateLSTM, {}, 1 << 30, False),
            (2, InitStateGRU, {"reset_after": False}, 0, True),
            (7, InitStateSimpleRNN, {"return_sequences": True}, 1 << 30, True),
            (33, InitStateLSTM, {"return_sequences": True}, 0, True),
            (33, InitStateLSTM, {"return_sequences": True}, 0, False),
            (50, InitStateGRU, {}, 0, False),
            (33, InitStateGRU, {"recurrent_dropout": 0.5, "seed": 1}, 0, False),
            (33, InitStateLSTM, {"activation": "relu"}, 1 << 30, False),
        ],
        ids=str,
    )
    def test_any_size_with_many_units_equals_keras(
        self, rows, make, options, most_for_xla, known, monkeypatch
    ):
        monkeypatch.setattr(tensorflow_loop, "_MOST_FOR_XLA", most_for_xla)
        options = {**options, "return_state": True}
        units = tensorflow_loop._FEWEST_FOR_BLOCKS // 32
        layer = make(units, use_fused=True, **options)
        x = batch(50)[:rows]
        layer.build(x.shape)
        signature = None if known else [tf.TensorSpec((None, *x.shape[1:]))]
        got = []
        for each in (layer, reference_of(layer, **options)):

            @tf.function(input_signature=signature)
            def call(x, each=each):
                return each(x), gradients_by_weights_and_inputs(each, x, training=True)

            got.append(call(x))
        assert_same(*got, tolerance=1e-4)

    @pytest.mark.parametrize("activation", ["relu", "linear", "silu"])
    def test_gradients_are_finite_where_padding_would_not_be(self, activation):
        x, options = -np.ones((9, 64, FEATURES)), {"activation": activation}
        layer = InitStateSimpleRNN(UNITS, use_fused=True, **options)
        layer.build(x.shape)
        # What is read stays 0; the padding would grow eightfold at each timestep.
        kernel = np.eye(FEATURES)[:, :1] * np.ones(UNITS)
        layer.cell.set_weights([kernel, 8 * np.eye(UNITS), np.ones(UNITS)])
        found = [
            gradients_by_weights_and_inputs(each, x, training=True)
            for each in (layer, reference_of(layer, **options))
        ]
        assert_same(*found)


class TestCompilations:
    def test_known_sizes_are_kept(self):
        layer = InitStateLSTM(UNITS, return_sequences=True, use_fused=True)
        layer(batch(rows=2)), layer(batch(rows=3, timesteps=TIMESTEPS + 1))

        @tf.function(input_signature=[tf.TensorSpec((None, TIMESTEPS, FEATURES))])
        def call(x):
            y = layer(x)
            assert y.shape == (None, TIMESTEPS, UNITS)
            return y

        assert call(batch()).shape == (4, TIMESTEPS, UNITS)

    def test_few_lengths_are_compiled_in_eager_calls(self, monkeypatch):
        def run_loop(cell, call):
            lengths.append(call.sequences.shape[1])
            return real(cell, call)

        real, lengths = tensorflow.run_loop, []
        monkeypatch.setattr(tensorflow, "run_loop", run_loop)
        layer = InitStateLSTM(UNITS)
        for timesteps in range(8, 65):
            layer(batch(timesteps=timesteps))
        # Four to an octave.
        rounded = [8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
        assert sorted(set(lengths)) == rounded
        assert len(lengths) == 57

    @pytest.mark.parametrize("has_mask", [False, True])
    def test_few_lengths_are_compiled_in_a_graph_for_any_length(
        self, has_mask, monkeypatch
    ):
        lengths, run_loop = set(), tensorflow_loop.run_loop

        def recorded(cell, call):
            timesteps = tf.shape(call.sequences)[1]
            tf.numpy_function(lambda n: lengths.add(int(n)) or n, [timesteps], tf.int32)
            return run_loop(cell, call)

        monkeypatch.setattr(tensorflow, "run_loop", recorded)
        layer = InitStateLSTM(UNITS, use_fused=True, return_sequences=True)
        layer.build((None, None, FEATURES))
        specs = [
            tf.TensorSpec((None, None, FEATURES)),
            tf.TensorSpec((None, None), "bool"),
        ]

        def step_of(each):
            return tf.function(
                lambda x, mask: gradients_by_weights_and_inputs(
                    each, x, mask=mask if has_mask else None, training=True
                ),
                input_signature=specs,
            )

        ours = step_of(layer)
        keras_s = step_of(reference_of(layer, return_sequences=True))
        for timesteps in (1, 8, 9, 11, 13, 14, 17):
            x = batch(timesteps=timesteps)
            mask = normal(*x.shape[:2]) > -0.5
            assert_same(ours(x, mask), keras_s(x, mask), tolerance=1e-5)
        assert lengths == {1, 8, 10, 12, 14, 20}

    def test_after_any_calls(self, taken):
        layers = [InitStateLSTM(UNITS, initial_state=0.5) for _ in range(2)]
        shapes = [(rows, timesteps) for rows in (1, 3, 33) for timesteps in (8, 9, 20)]
        for layer, order in zip(layers, (shapes, shapes[::-1]), strict=True):
            layer.build((None, None, FEATURES))
            layer.set_weights(layers[0].get_weights())
            for shape in order:
                layer(batch(*shape))
        assert len(taken) == 2 * len(shapes)
        for shape in shapes:
            assert_same(*(layer(batch(*shape)) for layer in layers))

    def test_for_batches_of_any_size_in_a_graph(self, taken):
        layer = InitStateLSTM(UNITS)
        model = keras.Sequential([keras.Input((TIMESTEPS, FEATURES)), layer])
        for rows in (1, 2, 3, 4, 5, 6, 7, 8, 33, 100):
            model.predict(batch(rows), batch_size=rows, verbose=0)
        assert 1 <= len(taken) <= 2

    def test_new_sizes_up_to_a_limit(self, taken, monkeypatch):
        known = InitStateLSTM(UNITS)
        known(batch())
        monkeypatch.setattr(tensorflow_loop, "_MOST_SIZES", 0)
        InitStateLSTM(61)(batch())
        assert len(taken) == 1
        known(batch()), InitStateLSTM(UNITS)(batch())
        assert len(taken) == 3
        InitStateLSTM(61, use_fused=True)(batch()), InitStateLSTM(61)(batch())
        assert len(taken) == 5


def test_rows_of_a_mask_are_counted_at_run_time():
    layer = InitStateLSTM(UNITS, use_fused=True)
    layer.build((4, TIMESTEPS, FEATURES))
    specs = [
        tf.TensorSpec((None, TIMESTEPS, FEATURES)),
        tf.TensorSpec((None, TIMESTEPS), "bool"),
    ]
    call = tf.function(lambda x, mask: layer(x, mask=mask), input_signature=specs)
    for rows in (1, 4):
        mask = np.arange(TIMESTEPS) < 3 + np.arange(rows)[:, None]
        want = reference_of(layer)(batch(), mask=np.broadcast_to(mask, (4, TIMESTEPS)))
        assert_same(call(batch(), mask), want, tolerance=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(batch(), np.ones((3, TIMESTEPS), "bool"))
