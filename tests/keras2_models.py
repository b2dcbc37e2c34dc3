"""Models as users of Keras 2 wrote them: one builder for each kind."""

import functools

import numpy as np
import tensorflow as tf
import tf_keras
from tf_keras import layers
from tf_keras.src.layers.rnn import cudnn_lstm

from models import BATCH, FEATURES, SHAPE, TIMESTEPS

DECODED = TIMESTEPS + 1


def sequential(*inner, shape=SHAPE[1:], **kwargs):
    return tf_keras.Sequential([tf_keras.Input(shape, **kwargs), *inner])


def sequence():
    return tf_keras.Input(SHAPE[1:])


def state():
    return tf_keras.Input((2,))


def tokens(length=TIMESTEPS):
    return tf_keras.Input((length,), dtype="int32")


def embedding():
    return layers.Embedding(5, FEATURES, mask_zero=True)


def called(call, *inputs):
    """A Functional model: what `call` makes of the inputs."""
    return tf_keras.Model(list(inputs), call(*inputs))


# Recurrent layers.


def recurrent():
    return sequential(
        layers.LSTM(
            3, return_sequences=True, implementation=1, kernel_regularizer="l2"
        ),
        layers.GRU(3, return_sequences=True, reset_after=False, go_backwards=True),
        layers.GRU(3, return_sequences=True, recurrent_constraint="max_norm"),
        layers.SimpleRNN(2, return_sequences=True, use_bias=False, trainable=False),
        layers.LSTM(2, unroll=True, dropout=0.2, recurrent_dropout=0.2),
    )


def cells():
    return sequential(
        layers.RNN(
            [layers.LSTMCell(3), layers.SimpleRNNCell(3)], return_sequences=True
        ),
        layers.RNN(layers.StackedRNNCells([layers.GRUCell(2)])),
    )


def cells_with_states():
    rnn = layers.RNN([layers.LSTMCell(2), layers.GRUCell(2)], return_state=True)
    return called(
        lambda x, h: rnn(layers.Masking()(x), initial_state=[[h, h], h]),
        sequence(),
        state(),
    )


def stateful():
    return sequential(
        layers.LSTM(2, stateful=True, return_sequences=True),
        layers.Bidirectional(layers.LSTM(2, stateful=True)),
        batch_size=BATCH,
    )


def convolutional():
    def call(x, h):
        y = layers.ConvLSTM2D(2, 2, return_sequences=True)(x, initial_state=[h, h])
        y = layers.TimeDistributed(layers.DepthwiseConv2D(2))(y)
        y = layers.TimeDistributed(layers.SeparableConv2D(2, 2))(y)
        return layers.LSTM(2)(layers.TimeDistributed(layers.Flatten())(y))

    return called(call, tf_keras.Input((3, 5, 5, 1)), tf_keras.Input((4, 4, 2)))


# Both directions.


def bidirectional(merge_mode):
    def call(x):
        backward = layers.GRU(2, go_backwards=True, return_sequences=True)
        both = layers.Bidirectional(
            layers.LSTM(2, return_sequences=True), merge_mode, backward_layer=backward
        )
        y = layers.Bidirectional(layers.GRU(2, return_state=True), merge_mode)(x)
        return [both(layers.Masking()(x)), *y]

    return called(call, sequence())


def bidirectional_with_states():
    both = layers.Bidirectional(layers.LSTM(2, return_sequences=True))
    return called(
        lambda x, *states: layers.GRU(2)(
            both(layers.Masking()(x), initial_state=list(states))
        ),
        sequence(),
        *(state() for _ in range(4)),
    )


class WithConstant(layers.GRUCell):
    def call(self, x, states, constants):
        return super().call(x, states)


# Encoders and decoders.


def decoder(attend, masked=True):
    def call(a, b):
        a, b = (
            layers.Embedding(5, FEATURES, mask_zero=masked)(each) for each in (a, b)
        )
        kwargs = {"return_sequences": True, "return_state": True}
        encoded, *states = layers.LSTM(2, **kwargs)(a)
        decoded, *_ = layers.LSTM(2, **kwargs)(b, initial_state=states)
        y = layers.Concatenate()([decoded, attend(decoded, encoded)])
        return [layers.TimeDistributed(layers.Dense(1))(y), layers.GRU(2)(y)]

    return called(call, tokens(), tokens(DECODED))


def decoder_of_both_directions():
    def call(a, b):
        both = layers.Bidirectional(layers.LSTM(2, return_state=True))
        _, h, c, backward_h, backward_c = both(embedding()(a))
        h = layers.Concatenate()([h, backward_h])
        c = layers.Concatenate()([c, backward_c])
        y = layers.LSTM(4, return_sequences=True)(embedding()(b), initial_state=[h, c])
        return layers.Dense(2, activation="softmax")(y)

    return called(call, tokens(), tokens(DECODED))


# Masks.


def mask_as_input():
    def call(x, mask, h):
        y = layers.LSTM(2, return_sequences=True)(x, mask=mask, initial_state=[h, h])
        y = layers.GRU(2, return_sequences=True)(y, initial_state=h)
        return layers.Bidirectional(layers.LSTM(2))(y)

    return called(call, sequence(), tf_keras.Input((TIMESTEPS,), dtype="bool"), state())


def mask_by_hand():
    def call(ids):
        made = embedding()
        y = layers.LSTM(2, return_sequences=True)(
            made(ids) * 2.0, mask=made.compute_mask(ids)
        )
        scores = layers.Flatten()(layers.Dense(1)(y))
        weights = layers.Softmax()(scores, mask=tf.not_equal(ids, 0))
        return [weights, layers.Dot(1)([weights, y])]

    return called(call, tokens())


def masks_passed_on():
    return sequential(
        layers.Masking(),
        layers.Dense(FEATURES, activation="relu"),
        layers.SpatialDropout1D(0.1),
        layers.GaussianNoise(0.1),
        layers.BatchNormalization(),
        layers.LayerNormalization(),
        layers.ReLU(6.0, negative_slope=0.1),
        layers.LeakyReLU(0.2),
        layers.Activation("tanh"),
        layers.TimeDistributed(layers.Dense(3)),
        layers.LSTM(3, return_sequences=True, zero_output_for_mask=True),
        layers.GlobalAveragePooling1D(),
    )


def masks_dropped(layer):
    return sequential(layers.Masking(), layer, layers.LSTM(2))


def masks_merged(merge):
    def call(a, b):
        masked = [layers.Masking()(a), layers.Masking()(b)]
        return [
            layers.LSTM(2)(merge()(masked)),
            layers.LSTM(2)(merge()([masked[0], b])),
            layers.LSTM(2)(merge()([a, masked[1]])),
        ]

    return called(call, sequence(), sequence())


def concatenated_in_time():
    def call(a, b):
        masked = [layers.Masking()(a), layers.Masking()(b)]
        return layers.LSTM(2)(layers.Concatenate(axis=1)(masked))

    return called(call, sequence(), sequence())


# Activations and types.


def activations():
    return sequential(
        layers.LSTM(2, recurrent_activation="hard_sigmoid", return_sequences=True),
        layers.GRU(2, activation="hard_sigmoid", return_sequences=True),
        layers.Bidirectional(
            layers.GRU(2, recurrent_activation="hard_sigmoid", return_sequences=True)
        ),
        layers.RNN(
            [layers.LSTMCell(2, recurrent_activation="hard_sigmoid")],
            return_sequences=True,
        ),
        layers.Activation(tf_keras.activations.hard_sigmoid),
        layers.SimpleRNN(2, activation="gelu"),
        layers.Dense(3, activation="hard_sigmoid"),
        layers.Dense(3, activation="swish"),
        layers.Dense(3, activation=tf.nn.leaky_relu),
        layers.Dense(3, activation=layers.LeakyReLU(0.3)),
    )


def mixed_precision():
    return called(
        lambda x: layers.Dense(1, dtype="float32")(
            layers.LSTM(2, dtype=tf_keras.mixed_precision.Policy("mixed_float16"))(x)
            * 2.0
        ),
        sequence(),
    )


def double_precision():
    kwargs = {"dtype": "float64"}
    return sequential(layers.LSTM(2, **kwargs), layers.Dense(1, **kwargs), **kwargs)


# Models in models, and layers in several places.


def nested():
    inner = called(
        lambda x, h: layers.LSTM(2, return_sequences=True)(x, initial_state=[h, h]),
        sequence(),
        state(),
    )

    def call(x, h):
        y = inner([layers.Masking()(x), h])
        z = layers.Dense(FEATURES)(y)
        return [layers.LSTM(2)(y), inner([z, h], training=False)]

    return called(call, sequence(), state())


def nested_sequential():
    inner = sequential(layers.GRU(FEATURES, return_sequences=True))
    deferred = tf_keras.Sequential([layers.LSTM(FEATURES, return_sequences=True)])
    once = called(sequential(layers.GRU(FEATURES, return_sequences=True)), sequence())
    once.trainable = False
    return called(lambda x: layers.LSTM(2)(once(deferred(inner(inner(x))))), sequence())


def nested_as_output():
    inner = decoder_of_both_directions()
    return called(lambda a, b: inner([a, b]), tokens(), tokens(DECODED))


def nested_in_time():
    inner = called(lambda ids: layers.LSTM(2)(embedding()(ids)), tokens())
    return called(
        lambda x: layers.LSTM(2)(layers.TimeDistributed(inner)(x)),
        tf_keras.Input((3, TIMESTEPS), dtype="int32"),
    )


def shared():
    def call(a, b):
        mask, encoder = layers.Masking(), layers.LSTM(FEATURES, return_sequences=True)
        a, b = encoder(encoder(mask(a))), encoder(mask(b))
        return layers.GlobalMaxPooling1D()(tf.abs(a - b))

    return called(call, sequence(), sequence())


def alike():
    """Layers of one shape, which Keras 3 puts in another order."""

    def call(a, b):
        a = layers.LSTM(2)(layers.Masking()(layers.Dense(3)(a)))
        b = layers.LSTM(2)(layers.Dropout(0.1)(layers.Dense(3)(b)))
        return layers.Concatenate()([b, a])

    inner = called(call, sequence(), sequence())
    return called(lambda a, b: [inner([a, b]), call(a, b)], sequence(), sequence())


def named_ends():
    ends = {
        "a": tf_keras.Input(SHAPE[1:], name="a"),
        "b": tf_keras.Input((2,), name="b"),
    }
    y = layers.Concatenate()([layers.LSTM(2)(ends["a"]), ends["b"]])
    return tf_keras.Model(
        ends, {"u": layers.Dense(1)(y), "v": layers.Dense(2, activation="softmax")(y)}
    )


# Operations on tensors.


def arithmetic():
    def call(x):
        h = layers.LSTM(2, return_sequences=True)(x)
        h = (1.0 - h) * h / 2 + h**2 - (-h)
        z = tf.concat([h[:, -1], tf.reduce_mean(h, 1), tf.reduce_max(h, axis=1)], -1)
        z = tf.where(z > 0.1, z, tf.zeros_like(z))
        z = tf.nn.relu(z) * np.arange(6, dtype="float32")
        start = tf.zeros_like(x[:, 0, :2])
        return [layers.GRU(2)(x, initial_state=start + 1.0), z]

    return called(call, sequence())


def operations():
    def call(x):
        h = layers.LSTM(2, return_sequences=True)(x)
        last = tf.squeeze(h[:, :1], 1)
        positive = (last > 0) & (last <= 1) | tf.logical_not(last >= -1)
        return [
            tf.cast(positive, tf.float32),
            tf.matmul(h, tf.transpose(h, [0, 2, 1])),
            tf.reshape(h, (-1, 2 * TIMESTEPS)),
            tf.stack([last, tf.ones_like(last)], axis=1),
            tf.reverse(h, [1]),
            tf.clip_by_value(h, -0.1, 0.1)[:, ::2, tf.newaxis],
            tf.expand_dims(tf.maximum(tf.minimum(last, 0.5), 0.0), 1),
            tf.sigmoid(tf.tanh(tf.exp(last))),
            tf.sqrt(tf.abs(last)) + tf.math.log(tf.square(last) + 1.0),
            tf.nn.softmax(last),
            tf.reduce_sum(h, [1, 2], keepdims=True) - tf.reduce_min(h),
            tf.cast(tf.equal(last, last), "float32"),
        ]

    return called(call, sequence())


def deferred():
    model = tf_keras.Sequential([embedding(), layers.LSTM(2), layers.Dense(1)])
    model(np.zeros((BATCH, TIMESTEPS), "int32"))
    return model


def normalized():
    normalization = layers.Normalization()
    normalization.adapt(np.arange(24, dtype="float32").reshape(8, FEATURES))
    return masks_dropped(normalization)


KINDS = {
    "recurrent": recurrent,
    "cells": cells,
    "cells with states": cells_with_states,
    "stateful": stateful,
    "convolutional": convolutional,
    **{
        f"both directions, {mode}": functools.partial(bidirectional, mode)
        for mode in ("concat", "ave", None)
    },
    "both directions with states": bidirectional_with_states,
    "decoder": lambda: decoder(lambda a, b: layers.Attention(use_scale=True)([a, b])),
    "decoder without masks": lambda: decoder(
        lambda a, b: layers.AdditiveAttention()([a, b]), masked=False
    ),
    "decoder with heads": lambda: decoder(
        layers.MultiHeadAttention(2, 2, dropout=0.1), masked=False
    ),
    "decoder of both directions": decoder_of_both_directions,
    "mask as input": mask_as_input,
    "mask by hand": mask_by_hand,
    "masks passed on": masks_passed_on,
    "masks dropped": lambda: masks_dropped(layers.Conv1D(3, 2, padding="causal")),
    "masks dropped by scaling": lambda: masks_dropped(layers.Rescaling(2.0)),
    "masks dropped by normalization": normalized,
    **{
        f"masks merged, {merge.__name__}": functools.partial(masks_merged, merge)
        for merge in (layers.Add, layers.Concatenate)
    },
    "concatenated in time": concatenated_in_time,
    "activations": activations,
    "mixed precision": mixed_precision,
    "double precision": double_precision,
    "nested": nested,
    "nested, Sequential": nested_sequential,
    "nested as output": nested_as_output,
    "nested in time": nested_in_time,
    "shared": shared,
    "alike": alike,
    "named ends": named_ends,
    "deferred": deferred,
    "arithmetic": arithmetic,
    "operations": operations,
}

# What is refused, and in what words.
REFUSED = {
    "time major": (
        lambda: sequential(layers.LSTM(2, time_major=True, name="swapped")),
        r"swapped \(LSTM\) has `time_major=True`",
    ),
    "constants": (
        lambda: called(
            lambda x, h: layers.RNN(WithConstant(2), name="given")(x, constants=h),
            sequence(),
            state(),
        ),
        r"given \(RNN\) takes `constants`",
    ),
    "code": (
        lambda: sequential(layers.LSTM(2), layers.Lambda(lambda x: x, name="code")),
        r"code \(Lambda\) holds code.*custom class",
    ),
    "cuDNN": (
        lambda: sequential(cudnn_lstm.CuDNNLSTM(2, name="fast")),
        r"fast \(CuDNNLSTM\) has its weights.*`LSTM`.*`load_weights\(\)`",
    ),
    "dropped class": (
        lambda: sequential(layers.ThresholdedReLU(name="gone"), layers.LSTM(2)),
        r"gone \(ThresholdedReLU\) is of a class.*custom_objects=.'ThresholdedReLU'",
    ),
    "operation": (
        lambda: called(lambda x: layers.LSTM(2)(tf.repeat(x, 2, axis=1)), sequence()),
        r"tf.repeat\S* \(TFOpLambda\) is the operation `tf.repeat`.*replace it",
    ),
    "argument of an operation": (
        lambda: called(
            lambda x: layers.LSTM(2)(tf.matmul(x, x, transpose_b=True)), sequence()
        ),
        "transpose_b",
    ),
    "constant tensor": (
        lambda: called(
            lambda x: layers.GRU(2, name="fixed")(x, initial_state=tf.ones((BATCH, 2))),
            sequence(),
        ),
        r"fixed \(GRU\) is called with a constant tensor",
    ),
    "heads beside masks": (
        lambda: called(
            lambda x: layers.MultiHeadAttention(1, 2, name="heads")(
                x, layers.Masking()(x)
            ),
            sequence(),
        ),
        r"heads \(MultiHeadAttention\) is used with masks",
    ),
    "ragged": (
        lambda: called(layers.LSTM(2), tf_keras.Input((None, 3), ragged=True)),
        "takes ragged or sparse tensors",
    ),
    "masks inside timesteps": (
        lambda: sequential(
            layers.TimeDistributed(layers.Masking()),
            layers.TimeDistributed(layers.LSTM(2)),
            shape=(2, *SHAPE[1:]),
        ),
        r"\(TimeDistributed\) has a mask inside each of its timesteps",
    ),
    "masks of nested models inside timesteps": (
        lambda: called(
            lambda x: layers.TimeDistributed(
                called(
                    lambda ids: layers.LSTM(2, return_sequences=True)(embedding()(ids)),
                    tokens(),
                )
            )(x),
            tf_keras.Input((3, TIMESTEPS), dtype="int32"),
        ),
        r"\(TimeDistributed\) has a mask inside each of its timesteps",
    ),
    "dropped argument": (
        lambda: sequential(layers.Softmax(robust_masking=True, name="last")),
        "load the layer last of the file.*robust_masking",
    ),
}


def batch_of(model):
    """A batch for a model, nested as its inputs, in which some timesteps are masked."""
    rng = np.random.default_rng(1)

    def draw(x):
        shape = (BATCH, *(size or TIMESTEPS for size in x.shape[1:]))
        if x.dtype == "bool":
            return rng.random(shape) > 0.4
        if x.dtype == "int32" or shape == (BATCH, TIMESTEPS):
            drawn = rng.integers(0, 5, shape)
            drawn[1] = 0  # A sequence without a timestep that is read.
            return drawn.astype(x.dtype.name)
        values = rng.normal(size=shape)
        if len(shape) == 3:
            values *= rng.random((*shape[:-1], 1)) > 0.3
        return values.astype(x.dtype.name)

    return tf.nest.map_structure(draw, model.input)
