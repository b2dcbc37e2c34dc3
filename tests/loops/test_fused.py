"""The fused loop of TensorFlow: when it runs, its gradients, and what is compiled."""

import dataclasses
import functools
import gc

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import in_a_fresh_process, tf
from keras_init_lstm import InitStateGRU, InitStateLSTM, InitStateSimpleRNN
from keras_init_lstm.loops import tensorflow as fused
from keras_init_lstm.loops import tensorflow_loop as fused_loop
from models import FEATURES, UNITS, normal
from oracles import (
    assert_same,
    gradients,
    reference_of,
    scale_of,
    tiled_states,
    to_numpy,
)
from strategies import FUSIBLE, at_most, cases, masks

pytestmark = pytest.mark.tensorflow

TIMESTEPS = 10  # The fused loop does not run for fewer than 8.


def batch(rows=4, timesteps=TIMESTEPS):
    return normal(rows, timesteps, FEATURES)


def gradients_by_weights_and_inputs(layer, x, states=None, order=1, **kwargs):
    x = tf.cast(x, layer.compute_dtype)
    watched = [x, *(w.value for w in layer.cell.weights)]
    kwargs |= {} if states is None else {"initial_state": states}
    return gradients(lambda: layer(x, **kwargs), watched, order)


@pytest.fixture
def taken(monkeypatch):
    """A list with an entry for each call or trace of the fused loop."""
    calls = []

    def run_loop(cell, call):
        calls.append(call.sequences.shape)
        return real(cell, call)

    real = fused.run_loop
    monkeypatch.setattr(fused, "run_loop", run_loop)
    return calls


class TestGradients:
    @at_most(15)  # Each differentiates twice, through a plain loop.
    @given(
        cases(
            kinds=("zeros", "fixed", "trainable"),
            dtypes=["float64"],
            layers=FUSIBLE,
            use_fused=True,
        ),
        st.booleans(),
    )
    def test_second_order_gradients_equal_keras(self, case, training):
        layer = case.layer()
        states = [tf.constant(s) for s in tiled_states(layer, case.batch)]
        names = ("activation", "recurrent_activation")
        # TensorFlow has no second derivative of softsign.
        has_no_second = "softsign" in map(case.arguments.get, names)
        call = {"mask": case.mask, "training": training}
        call["order"] = 1 if has_no_second else 2
        got = gradients_by_weights_and_inputs(layer, case.inputs, **call)
        reference = case.reference(layer)
        want = gradients_by_weights_and_inputs(reference, case.inputs, states, **call)
        assert_same(got, want, tolerance=1e-9 * scale_of(want))

    @pytest.mark.parametrize(
        ("make", "options"),
        [
            (InitStateLSTM, {"dropout": 0.3}),
            (InitStateGRU, {"dropout": 0.3}),
            (InitStateGRU, {"reset_after": False}),
            (InitStateSimpleRNN, {"dropout": 0.3}),
        ],
        ids=str,
    )
    def test_with_recurrent_dropout_equal_keras(self, make, options):
        options = {"dtype": "float64", "seed": 1, "recurrent_dropout": 0.5, **options}
        x, call = batch(timesteps=4), {"training": True, "order": 2}
        layer = make(UNITS, use_fused=True, return_sequences=True, **options)
        layer.build(x.shape)
        reference = reference_of(layer, return_sequences=True, **options)
        got, want = (
            gradients_by_weights_and_inputs(e, x, **call) for e in (layer, reference)
        )
        assert_same(got, want, tolerance=1e-9 * scale_of(want))

    # For each activation what its argument is at the kinks.
    @pytest.mark.parametrize(
        ("activation", "kinks"),
        [("relu", [0]), ("hard_sigmoid", [-3, 3]), ("hard_tanh", [-1, 1])],
    )
    @pytest.mark.parametrize(
        ("make", "role"),
        [
            (InitStateLSTM, "activation"),
            (InitStateLSTM, "recurrent_activation"),
            (InitStateGRU, "activation"),
            (InitStateGRU, "recurrent_activation"),
            (InitStateSimpleRNN, "activation"),
        ],
    )
    def test_at_the_kinks_equal_keras(self, make, role, activation, kinks):
        options = {role: activation, "return_state": True, "dtype": "float64"}
        units, x = len(kinks), normal(1, 2, FEATURES)
        layer = make(units, use_fused=True, initial_state=0.5, **options)
        layer.build(x.shape)
        bias = np.zeros(layer.cell.bias.shape)
        gates = bias.reshape(-1, layer.cell.kernel.shape[1] // units, units)
        is_of_role = np.arange(gates.shape[1]) == min(2, gates.shape[1] - 1)
        if role == "recurrent_activation":
            gates[:, is_of_role] = 1  # That the others make a difference.
            is_of_role = ~is_of_role
        gates[0, is_of_role] = kinks
        layer.cell.set_weights([0 * w for w in layer.cell.get_weights()[:2]] + [bias])
        reference, found = reference_of(layer, **options), []
        states = [tf.constant(s) for s in tiled_states(layer, 1)]
        for each, kwargs in ((layer, {}), (reference, {"initial_state": states})):

            def call(each=each, kwargs=kwargs):
                return [1 + y for y in each(x.astype("float64"), **kwargs)]

            weights = [weight.value for weight in each.cell.weights]
            found.append(gradients(call, weights, order=2))
        assert_same(*found, tolerance=1e-12)

    def test_are_finite_where_padding_would_not_be(self):
        x, options = -np.ones((9, 64, FEATURES)), {"activation": "relu"}
        layer = InitStateSimpleRNN(UNITS, use_fused=True, **options)
        layer.build(x.shape)
        weights = [np.ones((FEATURES, UNITS)), 8 * np.eye(UNITS), np.ones(UNITS)]
        layer.cell.set_weights(weights)
        reference = reference_of(layer, **options)
        call = {"training": True}
        found = [
            gradients_by_weights_and_inputs(each, x, **call)
            for each in (layer, reference)
        ]
        assert_same(*found)


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


def repeatedly(call, x):
    start = tf.zeros((len(x), UNITS))
    return tf.while_loop(
        lambda i, _: i < 3, lambda i, y: (i + 1, y + call(x)), (0, start)
    )


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
    monkeypatch.setattr(fused_loop, "_MOST_FOR_XLA", most_for_xla)
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
        rounded = fused_loop.rounded_up(rows)
        assert max(rows, 1) <= rounded <= max(1.25 * rows, 8)
        assert fused_loop.rounded_up(rounded) == rounded
        assert int(fused_loop.rounded_up(tf.constant(rows))) == rounded
        assert fused_loop.rounded_up(max(rows, other)) >= rounded

    def test_few_sizes_are_compiled(self):
        assert len({fused_loop.rounded_up(rows) for rows in range(1025)}) == 8 + 4 * 7

    @pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
    # In one block or more, and with time put in front by XLA or by TensorFlow.
    @pytest.mark.parametrize(
        ("rows", "make", "options", "most_for_xla"),
        [
            (1, InitStateLSTM, {}, 1 << 30),
            (2, InitStateGRU, {"reset_after": False}, 0),
            (7, InitStateSimpleRNN, {"return_sequences": True}, 1 << 30),
            (33, InitStateLSTM, {"return_sequences": True}, 0),
            (50, InitStateGRU, {}, 0),
            (33, InitStateGRU, {"recurrent_dropout": 0.5, "seed": 1}, 0),
            (33, InitStateLSTM, {"activation": "relu"}, 1 << 30),
        ],
        ids=str,
    )
    def test_any_size_with_many_units_equals_keras(
        self, rows, make, options, most_for_xla, known, monkeypatch
    ):
        monkeypatch.setattr(fused_loop, "_MOST_FOR_XLA", most_for_xla)
        options = {**options, "return_state": True}
        units = fused_loop._FEWEST_FOR_BLOCKS // 32
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


class TestTimesteps:
    @at_most(15)  # Each differentiates an eager loop of Keras.
    @given(
        cases(
            kinds=("fixed",),
            dtypes=["float64"],
            layers=FUSIBLE,
            use_fused=True,
            return_state=True,
        ),
        st.sampled_from([9, 11, 17]),
        st.data(),
    )
    def test_rounded_up_timesteps_equal_keras(self, case, timesteps, data):
        shape = (case.batch, timesteps, case.inputs.shape[2])
        mask = data.draw(masks(*shape[:2]))
        case = dataclasses.replace(case, inputs=normal(*shape), mask=mask)
        layer = case.layer()
        reference, states = case.reference(layer), case.states(layer)

        def call(each, **kwargs):
            weights = [w.value for w in each.cell.weights]
            return case.call(each, **kwargs), gradients(
                lambda: case.call(each, training=True, **kwargs), weights
            )

        want = call(reference, initial_state=states)
        assert_same(call(layer), want, tolerance=1e-11 * scale_of(want))


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

    @pytest.mark.parametrize(
        ("arguments", "timesteps", "kwargs", "expected"),
        [
            ({}, TIMESTEPS, {}, True),
            ({"use_fused": False}, TIMESTEPS, {}, False),
            ({"use_fused": True}, 1, {}, True),
            ({}, 7, {}, False),
            ({"unroll": True}, TIMESTEPS, {}, False),
            ({"activation": "relu"}, TIMESTEPS, {}, True),
            ({"activation": "elu"}, TIMESTEPS, {}, False),
            ({"recurrent_activation": "hard_sigmoid"}, TIMESTEPS, {}, True),
            ({"recurrent_activation": "gelu"}, TIMESTEPS, {}, False),
            ({"implementation": 1}, TIMESTEPS, {"training": True}, True),
            (
                {"implementation": 1, "dropout": 0.5, "use_cudnn": False},
                TIMESTEPS,
                {"training": True},
                True,
            ),
            ({"dtype": "mixed_bfloat16"}, TIMESTEPS, {}, False),
            ({"dtype": "mixed_bfloat16", "use_fused": True}, TIMESTEPS, {}, True),
            ({"dropout": 0.5}, TIMESTEPS, {"training": True}, True),
            ({"recurrent_dropout": 0.5}, TIMESTEPS, {"training": True}, True),
            (
                {"dropout": 0.5, "recurrent_dropout": 0.5},
                TIMESTEPS,
                {"training": True},
                True,
            ),
            ({"recurrent_dropout": 1.0}, TIMESTEPS, {"training": True}, False),
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
            (InitStateGRU, {"reset_after": False}, {}, True),
            (InitStateGRU, {"use_fused": False}, {}, False),
            (InitStateGRU, {"recurrent_activation": "relu"}, {}, True),
            (InitStateGRU, {"recurrent_activation": "elu"}, {}, False),
            (InitStateGRU, {"recurrent_dropout": 0.5}, {"training": True}, True),
            (InitStateSimpleRNN, {}, {}, True),
            (InitStateSimpleRNN, {"activation": "relu"}, {}, True),
            (InitStateSimpleRNN, {"activation": "elu"}, {}, False),
            (InitStateSimpleRNN, {"dropout": 0.5}, {"training": True}, True),
            (InitStateSimpleRNN, {"recurrent_dropout": 0.5}, {"training": True}, True),
            (InitStateSimpleRNN, {"recurrent_dropout": 1.0}, {"training": True}, False),
            (InitStateSimpleRNN, {"recurrent_dropout": 0.5}, {}, True),
        ],
        ids=str,
    )
    def test_other_layers(self, taken, make, arguments, kwargs, expected):
        make(UNITS, **arguments)(batch(), **kwargs)
        assert bool(taken) == expected

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

    def test_known_sizes_are_kept(self):
        layer = InitStateLSTM(UNITS, return_sequences=True, use_fused=True)
        layer(batch(rows=2)), layer(batch(rows=3, timesteps=TIMESTEPS + 1))

        @tf.function(input_signature=[tf.TensorSpec((None, TIMESTEPS, FEATURES))])
        def call(x):
            y = layer(x)
            assert y.shape == (None, TIMESTEPS, UNITS)
            return y

        assert call(batch()).shape == (4, TIMESTEPS, UNITS)

    def test_few_lengths_are_compiled_in_eager_calls(self, taken):
        layer = InitStateLSTM(UNITS)
        for timesteps in range(8, 65):
            layer(batch(timesteps=timesteps))
        # Four to an octave.
        rounded = [8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64]
        assert sorted({shape[1] for shape in taken}) == rounded
        assert len(taken) == 57

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

    def test_not_with_a_gpu(self, taken, monkeypatch):
        monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
        fused.available.cache_clear()
        try:
            InitStateLSTM(UNITS)(batch())
            assert not taken
        finally:
            fused.available.cache_clear()

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

    def test_new_sizes_up_to_a_limit(self, taken, monkeypatch):
        known = InitStateLSTM(UNITS)
        known(batch())
        monkeypatch.setattr(fused_loop, "_MOST_SIZES", 0)
        InitStateLSTM(61)(batch())
        assert len(taken) == 1
        known(batch()), InitStateLSTM(UNITS)(batch())
        assert len(taken) == 3
        InitStateLSTM(61, use_fused=True)(batch()), InitStateLSTM(61)(batch())
        assert len(taken) == 5


# Functions that a user may make from a layer for inference, and whether the fused loop
# runs in them.


def any_batch_size(call):
    spec = tf.TensorSpec((None, TIMESTEPS, FEATURES))
    return tf.function(call, input_signature=[spec])


def without_its_parts(layer):
    """A concrete function of another function, which is deleted."""

    def concrete():
        inner = any_batch_size(layer)
        return any_batch_size(lambda x: inner(x) * 1).get_concrete_function()

    outer = concrete()
    gc.collect()
    return outer


def on_a_tape(layer):
    def call(x):
        with tf.GradientTape():
            return function(x)

    function = tf.function(layer)
    return call


def without_grappler(layer):
    def call(x):
        tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})
        try:
            return tf.function(layer)(x)
        finally:
            tf.config.optimizer.set_experimental_options(
                {"disable_meta_optimizer": False}
            )

    return call


GRAPHS = {
    "a function": (tf.function, True),
    "of any batch": (any_batch_size, True),
    "without its parts": (without_its_parts, True),
    "with a mask": (
        lambda layer: tf.function(
            lambda x: layer(x, mask=tf.ones((len(x), TIMESTEPS), "bool"))
        ),
        True,
    ),
    "while_loop": (
        lambda layer: tf.function(lambda x: repeatedly(layer, x)[1] / 3),
        True,
    ),
    "cond": (
        lambda layer: tf.function(
            lambda x: tf.cond(x[0, 0, 0] < 9, lambda: layer(x), lambda: x[:, 0])
        ),
        True,
    ),
    "jit_compile": (lambda layer: tf.function(layer, jit_compile=True), False),
    "on a tape": (on_a_tape, False),
    "without grappler": (without_grappler, False),
}


@pytest.mark.usefixtures("fused_adds_one")
class TestInAGraph:
    @pytest.mark.parametrize("graph", GRAPHS)
    def test_at_inference(self, graph):
        make, fused = GRAPHS[graph]
        layer, x = InitStateLSTM(UNITS), tf.constant(batch())
        layer.build(x.shape)
        got = make(layer)(x)
        assert_same(got, reference_of(layer)(x) + fused, tolerance=1e-6)

    def test_with_given_weights(self):
        layer, x = InitStateLSTM(UNITS, initial_state=0.5), tf.constant(batch())
        layer.build(x.shape)
        weights = [weight.value for weight in layer.trainable_variables]
        others = [weight.value for weight in layer.non_trainable_variables]
        call = tf.function(
            lambda x, weights: layer.stateless_call(weights, others, x)[0]
        )
        assert_same(call(x, weights), tf.function(layer)(x))
        got = call(x, [2 * weight for weight in weights])
        layer.cell.set_weights([2 * weight for weight in layer.cell.get_weights()])
        assert_same(got, tf.function(layer)(x))

    def test_for_a_stream(self):
        layer, x = InitStateLSTM(UNITS, stateful=True, initial_state=0.5), batch()
        layer.build(x.shape)
        lstm, call = reference_of(layer), tf.function(layer)
        states = layer.get_initial_state(len(x))
        lstm.return_state = True
        for _ in range(2):
            want, h, c = lstm(x, initial_state=states)
            assert_same(call(x), want + 1, tolerance=1e-6)
            assert_same(layer.states, [h + 1, c + 1], tolerance=1e-6)
            states = [h + 1, c + 1]

    def test_is_freed_with_the_graph(self):
        def graphs():
            gc.collect()
            return sum(isinstance(each, tf.Graph) for each in gc.get_objects())

        layer, x = InitStateLSTM(UNITS), batch()
        tf.function(layer)(x)
        before = graphs()
        tf.function(layer)(x)
        assert graphs() == before


def outcome(call):
    """The result of a call, or the class of its error."""
    try:
        return to_numpy(call())
    except Exception as error:
        return type(error)


@pytest.mark.parametrize("in_graph", [False, True])
@pytest.mark.parametrize(
    "shape",
    [
        (4, TIMESTEPS),
        (4, TIMESTEPS, 1),
        (4, TIMESTEPS, UNITS),
        (1, TIMESTEPS),
        (3, TIMESTEPS),
        (4, TIMESTEPS - 2),
        (4, TIMESTEPS + 2),
        (4, 1),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [4, 1])
def test_a_mask_of_any_shape_does_what_it_does_to_lstm(shape, in_graph, rows):
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    layer.build((4, TIMESTEPS, FEATURES))
    mask = np.random.default_rng(1).random(shape) < 0.6
    outcomes = []
    for each in (layer, reference_of(layer)):
        states = (
            {} if each is layer else {"initial_state": layer.get_initial_state(rows)}
        )

        def call(x, mask, each=each, states=states):
            return each(x, mask=mask, training=True, **states)

        call = tf.function(call) if in_graph else call
        outcomes.append(outcome(lambda call=call: call(batch(rows), mask)))
    got, want = outcomes
    if isinstance(want, type):
        assert got is want
    else:
        assert_same(got, want, tolerance=1e-6)


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


def test_nearly_closed_gates_are_exact_to_rounding():
    layer = InitStateLSTM(1, bias_initializer=keras.initializers.Constant(-12))
    layer.build((None, TIMESTEPS, FEATURES))
    kernel, recurrent_kernel, bias = layer.get_weights()
    bias[1:] = 0
    layer.set_weights([0 * kernel + [0, 0, 1, 0], 0 * recurrent_kernel, bias])
    x = np.ones((1, TIMESTEPS, FEATURES), "float32")
    got, want = (
        to_numpy(each(x, training=True)) for each in (layer, reference_of(layer))
    )
    assert 0 < want < 1e-5
    assert_same(got, want, tolerance=2e-7)


def test_sequences_in_a_variable():
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    assert_same(layer(keras.Variable(batch())), layer(batch()))


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
    for module in (
        "tensorflow.python.eager.forwardprop_util",
        "tensorflow.python.framework.op_callbacks",
    ):
        assert in_a_fresh_process(script, module).split() == ["True", "True"]


def relu(x):
    """Not what Keras has by this name."""
    return tf.nn.relu(x) / 2


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

    def test_use_cudnn_without_a_gpu_raises_as_in_lstm(self):
        got = outcome(lambda: InitStateLSTM(UNITS, use_cudnn=True)(batch()))
        assert got is outcome(lambda: keras.layers.LSTM(UNITS, use_cudnn=True)(batch()))


def test_a_mask_of_integers():
    layer = InitStateLSTM(UNITS, initial_state=0.5, use_fused=True)
    mask = np.arange(TIMESTEPS) < np.array([[3], [0], [TIMESTEPS], [7]])
    assert_same(layer(batch(), mask=mask.astype("int32")), layer(batch(), mask=mask))


def test_explicit_states_may_be_variables():
    layer = InitStateLSTM(2, use_fused=True)
    x, states = normal(3, 9, 4), [normal(3, 2), normal(3, 2, seed=1)]
    want = layer(x, initial_state=states)
    assert_same(layer(x, initial_state=list(map(tf.Variable, states))), want)
    given = list(map(keras.Variable, states))
    assert_same(layer(x, initial_state=[state.value for state in given]), want)


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
    layer.cell.get_dropout_mask = lambda x: 3 * tf.ones_like(x)


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
    layer.cell.kernel = tf.tanh(3 * layer.cell.kernel.value)


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
    @pytest.mark.parametrize("in_graph", [False, True])
    @pytest.mark.parametrize("change", CHANGES)
    def test_is_called(self, taken, change, in_graph):
        layer, x = InitStateLSTM(UNITS, initial_state=0.5), batch()
        layer.build(x.shape)
        layer.cell.bias.assign_add(tf.ones_like(layer.cell.bias))
        reference, states = reference_of(layer), layer.get_initial_state(len(x))
        before = to_numpy(layer(x, training=True))
        assert len(taken) == 1
        results = []
        for each, kwargs in ((layer, {}), (reference, {"initial_state": states})):
            change(each)
            call = functools.partial(each, training=True, **kwargs)
            results.append(to_numpy((tf.function(call) if in_graph else call)(x)))
        assert_same(*results)
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
        states = [tf.fill((len(x), UNITS), 0.5)] * 2
        assert_same(layer(x), rnn(x, initial_state=states))
        assert not taken

    def test_adds_its_losses(self, taken):
        layer, x = InitStateLSTM(UNITS), batch()
        layer.build(x.shape)
        reference = reference_of(layer)
        for each in (layer, reference):
            each.cell.activity_regularizer = keras.regularizers.L2(0.1)
            each(x)
        assert_same(layer.losses, reference.losses)
        assert layer.losses and not taken

    def test_of_a_simple_rnn_may_use_its_bias_or_not(self, taken):
        layer, x = InitStateSimpleRNN(UNITS), batch()
        layer.build(x.shape)
        layer.cell.bias.assign_add(tf.ones_like(layer.cell.bias))
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
