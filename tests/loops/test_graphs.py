"""Which loop runs in a graph of the user, whose file holds Keras's loop."""

import gc

import pytest

from backends import tf
from keras_init_lstm import InitStateLSTM
from loop_cases import TIMESTEPS, batch, repeatedly
from models import FEATURES, UNITS
from oracles import assert_same, reference_of

pytestmark = pytest.mark.tensorflow


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
    "a function": (lambda layer: tf.function(layer), True),
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
