"""Ways to differentiate the fused loop of TensorFlow, compared with Keras's layers."""

import functools

import keras
import numpy as np
import pytest

from backends import tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.loops import tensorflow_loop
from loop_cases import TIMESTEPS, batch, repeatedly
from models import FEATURES, UNITS
from oracles import assert_same, gradients, reference_of, scale_of

pytestmark = pytest.mark.tensorflow


# Ways to differentiate other than a tape around a call. Each function takes a function
# of the sequences and a variable, and returns derivatives by the variable.


def with_functions_run_eagerly(call, x, variable):
    tf.config.run_functions_eagerly(True)
    try:
        return gradients(lambda: call(x), [variable])
    finally:
        tf.config.run_functions_eagerly(False)


def with_numbers_checked(call, x, variable):
    call(x)
    tf.debugging.enable_check_numerics()
    try:
        return gradients(lambda: call(x), [variable]), tf.function(call)(x)
    finally:
        tf.debugging.disable_check_numerics()


def forwards(call, x, variable):
    tangent = tf.ones_like(variable)
    with tf.autodiff.ForwardAccumulator(variable, tangent) as accumulator:
        y = call(x)
    return accumulator.jvp(y)


def forwards_by_inputs(call, x, _):
    x = tf.constant(x)
    with tf.autodiff.ForwardAccumulator(x, tf.ones_like(x)) as accumulator:
        y = call(x)
    return accumulator.jvp(y)


def twice_by_jacobian(call, x, variable):
    with tf.GradientTape() as outer:
        with tf.GradientTape() as inner:
            loss = tf.reduce_sum(call(x) ** 2)
        gradient = inner.gradient(loss, variable)
    return outer.jacobian(gradient, variable)


def through_a_function(call, x, variable):
    return gradients(lambda: tf.function(call)(x), [variable])


def around(control_flow):
    def differentiate(call, x, variable):
        @tf.function
        def run(x):
            return gradients(lambda: control_flow(call, x), [variable])

        return run(tf.constant(x))

    return differentiate


WAYS = {
    "functions run eagerly": with_functions_run_eagerly,
    "numbers checked": with_numbers_checked,
    "forwards": forwards,
    "forwards by inputs": forwards_by_inputs,
    "twice by jacobian": twice_by_jacobian,
    "through a function": through_a_function,
    "within a function": around(lambda call, x: call(x)),
    "cond": around(
        lambda call, x: tf.cond(x[0, 0, 0] < 9, lambda: call(x), lambda: call(2 * x))
    ),
    "switch_case": around(
        lambda call, x: tf.switch_case(
            tf.cast(x[0, 0, 0] < 9, "int32"), [lambda: x[:, 0, :UNITS], lambda: call(x)]
        )
    ),
    "keras.ops.cond": around(
        lambda call, x: keras.ops.cond(x[0, 0, 0] < 9, lambda: call(x), lambda: call(x))
    ),
    "while_loop": around(lambda call, x: repeatedly(call, x)[1]),
}


@pytest.mark.parametrize(
    ("make", "training"),
    [
        (InitStateLSTM, False),
        (InitStateLSTM, True),
        (InitStateGRU, True),
        (InitStateSimpleRNN, False),
    ],
)
@pytest.mark.parametrize("way", WAYS)
def test_differentiated_in_another_way(way, make, training):
    layer, x = make(UNITS, initial_state="trainable"), batch()
    layer.build(x.shape)
    layer.h0.value.assign(np.full(UNITS, 0.5))
    keras_layer, states = reference_of(layer), layer.get_initial_state(len(x))

    def call(x):
        return layer(x, training=training)

    def reference(x):
        return keras_layer(x, initial_state=states, training=training)

    got = WAYS[way](call, x, layer.cell.kernel.value)
    want = WAYS[way](reference, x, keras_layer.cell.kernel.value)
    assert_same(got, want, tolerance=1e-5)


def nested(call, x):
    one = tf.ones((1, UNITS))
    return tf.cond(
        x[0, 0, 0] < 9,
        lambda: tf.cond(x[0, 0, 0] < 8, lambda: call(x), lambda: 2 * call(x)),
        lambda: x[:, 0, :1] * one,
    )


def in_a_branch_of_a_loop(call, x):
    def step(i, y):
        return i + 1, y + tf.cond(i < 2, lambda: call(x), lambda: call(x / 2))

    start = tf.zeros((len(x), UNITS))
    return tf.while_loop(lambda i, _: i < 3, step, (0, start))[1]


def in_a_loop_of_a_branch(call, x):
    return tf.cond(
        x[0, 0, 0] < 9, lambda: repeatedly(call, x)[1], lambda: x[:, 0, :UNITS]
    )


def in_a_function_of_a_branch(call, x):
    return tf.cond(x[0, 0, 0] < 9, lambda: tf.function(call)(x), lambda: 2 * call(x))


def by_a_tape_of_the_branch(call, x, variable):
    def branch():
        return gradients(lambda: call(x), [variable])[0]

    return tf.function(
        lambda x: tf.cond(x[0, 0, 0] < 9, branch, lambda: tf.zeros_like(variable))
    )(x)


def by_a_tape_around_one_of_the_branch(call, x, variable):
    def loss():
        return tf.reduce_sum(by_a_tape_of_the_branch(call, x, variable) ** 2)

    return tf.function(lambda: gradients(loss, [variable]))()


def twice_around_a_branch(call, x, variable):
    def branch(x):
        return tf.cond(x[0, 0, 0] < 9, lambda: call(x), lambda: x[:, 0, :UNITS])

    return tf.function(lambda x: gradients(lambda: branch(x), [variable], order=2))(x)


def by_two_tapes_of_a_nested_branch(call, x, variable):
    def twice():
        with tf.GradientTape() as outer:
            outer.watch(variable)
            (gradient,) = gradients(lambda: call(x), [variable])
            loss = tf.reduce_sum(gradient**2)
        return outer.gradient(loss, variable)

    def other():
        return tf.zeros_like(variable)

    def branch():
        return tf.cond(x[0, 0, 0] < 8, twice, other)

    return tf.function(lambda x: tf.cond(x[0, 0, 0] < 9, branch, other))(x)


def in_a_branch_of_many_in_a_loop(call, x):
    def step(i, y):
        branches = [lambda: call(x), lambda: call(x / 2), lambda: x[:, 0, :UNITS]]
        return i + 1, y + tf.switch_case(i, branches)

    start = tf.zeros((len(x), UNITS))
    return tf.while_loop(lambda i, _: i < 3, step, (0, start))[1]


BRANCHES = {
    "nested": around(nested),
    "in two tapes of a nested branch": by_two_tapes_of_a_nested_branch,
    "in a branch of many in a loop": around(in_a_branch_of_many_in_a_loop),
    "in a branch of a loop": around(in_a_branch_of_a_loop),
    "in a loop of a branch": around(in_a_loop_of_a_branch),
    "in a function of a branch": around(in_a_function_of_a_branch),
    "in a tape of the branch": by_a_tape_of_the_branch,
    "in two tapes": by_a_tape_around_one_of_the_branch,
    "twice": twice_around_a_branch,
    **{name: WAYS[name] for name in ("cond", "switch_case", "keras.ops.cond")},
}


@pytest.mark.parametrize(
    ("way", "make", "training"),
    [
        *((way, InitStateSimpleRNN, True) for way in BRANCHES),
        ("nested", InitStateLSTM, False),
        ("in two tapes", InitStateLSTM, False),
    ],
)
def test_differentiated_in_a_branch(taken, way, make, training):
    layer, x = make(UNITS, initial_state=0.5, use_fused=True), tf.constant(batch())
    layer.build(x.shape)
    keras_layer, states = reference_of(layer), layer.get_initial_state(len(x))
    mask = np.arange(x.shape[0] * TIMESTEPS).reshape(x.shape[:2]) % 3 != 1
    call = functools.partial(layer, training=training, mask=mask)
    reference = functools.partial(
        keras_layer, training=training, mask=mask, initial_state=states
    )
    got = BRANCHES[way](call, x, layer.cell.kernel.value)
    assert taken
    want = BRANCHES[way](reference, x, keras_layer.cell.kernel.value)
    assert_same(got, want, tolerance=1e-5 * scale_of(want))


def test_resets_differentiated_in_a_branch():
    x, found, weights = tf.constant(batch()), [], None
    reset_mask = np.arange(x.shape[0] * TIMESTEPS).reshape(x.shape[:2]) % 4 == 0
    for use_fused in (True, False):
        layer = InitStateLSTM(UNITS, initial_state="trainable", use_fused=use_fused)
        layer.build(x.shape)
        weights = weights or [weight + 0.1 for weight in layer.get_weights()]
        layer.set_weights(weights)
        call = functools.partial(layer, reset_mask=reset_mask, training=True)
        found.append(BRANCHES["nested"](call, x, layer.h0.value.value))
    assert_same(*found, tolerance=1e-5)


@pytest.mark.parametrize(
    ("make", "training", "most_for_xla"),
    [
        (InitStateLSTM, False, 1 << 30),
        (InitStateLSTM, True, 0),
        (InitStateGRU, True, 1 << 30),
    ],
)
def test_differentiated_twice_through_a_function(
    make, training, most_for_xla, monkeypatch
):
    monkeypatch.setattr(tensorflow_loop, "_MOST_FOR_XLA", most_for_xla)
    layer, x = make(UNITS, return_sequences=True), batch()
    layer.build(x.shape)
    mask = np.arange(x.size // FEATURES).reshape(x.shape[:2]) % 3 != 1
    found = [
        of_a_function_twice(each, x, each.cell.weights, training, mask=mask)
        for each in (layer, reference_of(layer, return_sequences=True))
    ]
    assert_same(*found, tolerance=1e-4)


def of_a_function_twice(layer, x, weights, training, **kwargs):
    function = tf.function(functools.partial(layer, training=training))
    variables = [weight.value for weight in weights]
    return gradients(lambda: function(x, **kwargs), variables, order=2)


def test_differentiated_twice_through_a_function_with_resets():
    x, found = batch(), []
    reset_mask = np.arange(x.size // FEATURES).reshape(x.shape[:2]) % 4 == 0
    weights = None
    for use_fused in (True, False):
        each = InitStateLSTM(UNITS, initial_state="trainable", use_fused=use_fused)
        each.build(x.shape)
        weights = weights or [weight + 0.1 for weight in each.get_weights()]
        each.set_weights(weights)
        found.append(
            of_a_function_twice(each, x, each.weights, True, reset_mask=reset_mask)
        )
    assert_same(*found, tolerance=1e-4)


def test_differentiated_twice_by_one_tensor_as_both_states():
    x, found = batch()[:, :2], []
    state = tf.ones((len(x), UNITS)) / 2
    layer = InitStateLSTM(UNITS, use_fused=True)
    layer.build(x.shape)
    for each in (layer, reference_of(layer)):

        def call(each=each):
            return each(x, initial_state=[state, state])

        found.append(gradients(call, [state], order=2))
    assert_same(*found, tolerance=1e-5)
