"""Precision policies, XLA and determinism in `fit`, compared with Keras's LSTM."""

import keras
import numpy as np
import pytest
from keras import layers

from backends import BACKEND, FLOAT64, in_a_fresh_process, tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, Sampled
from models import FEATURES, MODES, UNITS, by_hand, normal, owning
from oracles import TOLERANCES, assert_same, to_numpy

TIMESTEPS = 10  # The fused loop does not run for fewer than 8.
X, Y = normal(8, TIMESTEPS, FEATURES), normal(8, 1)


def after_training(layer, policy, **compile_arguments):
    x = keras.Input((TIMESTEPS, FEATURES))
    outputs = layers.Dense(1, dtype="float32", kernel_initializer="ones")(layer(x))
    model = keras.Model(x, outputs)
    optimizer = keras.optimizers.SGD(0.05)
    model.compile(optimizer, "mse", **compile_arguments)
    model.fit(X, Y, batch_size=4, epochs=2, shuffle=False, verbose=0)
    if policy == "mixed_float16":
        assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
        assert int(to_numpy(model.optimizer.step_counter)) == 4
    return model.predict(X, verbose=0), model.evaluate(X, Y, verbose=0)


def case_of(*drawn):
    """A pytest parameter of several values. Each of them may have marks."""
    values = [value.values[0] if hasattr(value, "marks") else value for value in drawn]
    marks = [mark for value in drawn for mark in getattr(value, "marks", ())]
    return pytest.param(*values, marks=marks)


# Each policy, and each mode with the most demanding policy.
CASES = [case_of("mixed_float16", mode) for mode in MODES]
CASES += [case_of(policy, {}) for policy in ("float32", FLOAT64, "mixed_bfloat16")]


# JAX would take minutes to compile all cases.
@pytest.mark.parametrize(("policy", "mode"), CASES if BACKEND != "jax" else CASES[:1])
def test_training_equals_an_lstm_with_two_explicit_weights(policy, mode):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        want = after_training(by_hand(UNITS), policy, **mode)
        for use_fused in ("auto", True) if tf and not mode else ("auto",):
            got = after_training(owning(UNITS, use_fused=use_fused), policy, **mode)
            assert_same(got, want, tolerance=TOLERANCES[policy])
    finally:
        keras.config.set_dtype_policy(before)


def train_twice():
    """Run it in a new process: TensorFlow can't switch determinism off again."""
    tf.config.experimental.enable_op_determinism()
    makers = {
        "fused": lambda kind: InitStateLSTM(UNITS, initial_state=kind, dropout=0.2),
        "not fused": lambda kind: InitStateLSTM(
            UNITS, initial_state=kind, recurrent_dropout=0.2
        ),
        "GRU": lambda kind: InitStateGRU(UNITS, initial_state=kind),
    }
    for name, make in makers.items():
        for kind in ("trainable", Sampled(0.1, 1.0, learned=True)):
            weights = []
            for _ in range(2):
                keras.utils.set_random_seed(1)
                model = keras.Sequential(
                    [keras.Input((TIMESTEPS, FEATURES)), make(kind), layers.Dense(1)]
                )
                model.compile("adam", "mse")
                model.fit(X, Y, batch_size=4, epochs=3, verbose=0)
                weights.append(model.get_weights())
            assert all(map(np.array_equal, *weights)), (name, kind)


@pytest.mark.tensorflow
def test_training_with_the_same_seed_is_bit_identical():
    in_a_fresh_process("import test_precision; test_precision.train_twice()")
