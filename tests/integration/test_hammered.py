"""Many calls of a layer: the memory does not grow, and nothing is traced again.

`make hammer` makes more calls, and prints the figures of Keras's LSTM too.
"""

import functools
import gc
import itertools
import os
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends import tf
from keras_init_lstm import InitStateLSTM, Sampled
from keras_init_lstm.loops import tensorflow_passes as fused_loop
from models import FEATURES, UNITS, normal
from oracles import assert_same, flat, gradients
from strategies import at_most, masks

pytestmark = pytest.mark.tensorflow

TIMESTEPS = 9
FULL = os.environ.get("HAMMER") == "full"
STREAM_CALLS, SHAPED_CALLS = (100_000, 10_000) if FULL else (2_000, 200)
# An eager call creates Keras's loop again.
EAGER_IS_SLOWER = 10
# A leak would grow with each call. The noise of the allocator does not.
FEW_MIB, FEW_OBJECTS = 16, 100
BATCHES, LENGTHS = ((1, 5, 13), (1, 8, 9, 23))
SHAPES = list(itertools.product(BATCHES, LENGTHS))


def resident_mib():
    """The resident memory of this process in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tracked_objects():
    gc.collect()
    return len(gc.get_objects())


def hammer(name, call, calls, warm_up, traces):
    """Calls a function with each index, and checks memory, objects and traces."""
    for index in range(warm_up):
        call(index)
    before = [traces(), tracked_objects(), resident_mib()]
    for index in range(calls):
        call(index)
    after = [traces(), tracked_objects(), resident_mib()]
    new_traces, objects, mib = (b - a for a, b in zip(before, after, strict=True))
    print(
        f"\n{name}: {calls} calls, {before[2]:.0f} to {after[2]:.0f} MiB, "
        f"{objects:+} objects, {before[0]} traces and {new_traces} new"
    )
    assert new_traces == 0
    assert objects <= FEW_OBJECTS
    assert mib <= FEW_MIB


@pytest.fixture
def traces(monkeypatch):
    """A list with an entry for each trace of a function of the fused loop."""
    traced = []

    def recorded(function):
        def trace(*args, **kwargs):
            traced.append(function)
            return function(*args, **kwargs)

        return trace

    fused_loop._compiled.cache_clear()
    for name in ("_forward", "_backward_loop"):
        monkeypatch.setattr(fused_loop, name, recorded(getattr(fused_loop, name)))
    yield traced
    fused_loop._compiled.cache_clear()


MAKERS = {
    "ours": lambda **kwargs: InitStateLSTM(UNITS, initial_state=0.5, **kwargs),
    "sampled": lambda **kwargs: InitStateLSTM(
        UNITS, initial_state=Sampled(at_inference="sample"), **kwargs
    ),
    "Keras's loop": lambda **kwargs: InitStateLSTM(
        UNITS, initial_state="trainable", use_fused=False, **kwargs
    ),
}
if FULL:
    MAKERS["keras.layers.LSTM"] = lambda **kwargs: keras.layers.LSTM(UNITS, **kwargs)


@pytest.mark.parametrize("way", ["eager", "graph"])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_stream_keeps_no_memory(maker, way, traces):
    layer = MAKERS[maker](stateful=True)
    x = tf.constant(normal(2, 8, FEATURES))
    layer(x)
    call = tf.function(layer) if way == "graph" else layer

    def one(index):
        call(x)
        if index % 100 == 99:
            layer.reset_state()

    def count():
        graph_traces = call.experimental_get_tracing_count() if way == "graph" else 0
        return graph_traces + len(traces)

    calls = STREAM_CALLS if way == "graph" else STREAM_CALLS // EAGER_IS_SLOWER
    hammer(f"a stream of {maker}, {way}", one, calls, calls // 10, count)
    assert np.isfinite(flat(layer.states)).all()


def eager(layer):
    return layer


def eager_gradients(layer):
    def call(x):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(x, training=True))
        return tape.gradient(loss, layer.trainable_variables)

    return call


def graph(layer):
    return tf.function(lambda x: layer(x, training=True))


def graph_of_any_shape(layer):
    spec = tf.TensorSpec((None, None, FEATURES))
    return tf.function(lambda x: layer(x), input_signature=[spec])


@pytest.mark.parametrize("way", [eager, eager_gradients, graph, graph_of_any_shape])
@pytest.mark.parametrize("maker", sorted({"ours", "keras.layers.LSTM"} & set(MAKERS)))
def test_many_shapes_keep_no_memory(maker, way, traces, caplog):
    layer = MAKERS[maker]()
    batches = [tf.constant(normal(*shape, FEATURES)) for shape in SHAPES]
    layer(batches[0])
    call = way(layer)

    def count():
        return getattr(call, "experimental_get_tracing_count", int)() + len(traces)

    order = np.random.default_rng(1).integers(len(SHAPES), size=SHAPED_CALLS)
    warm_up = len(SHAPES)
    for x in batches:
        call(x)
    name = f"{len(SHAPES)} shapes, {maker}, {way.__name__}"
    hammer(name, lambda i: call(batches[order[i]]), SHAPED_CALLS, warm_up, count)
    if way in (graph, graph_of_any_shape):
        expected = len(SHAPES) if way is graph else 1
        assert call.experimental_get_tracing_count() == expected
    else:  # The layer traces its own functions, and a user must see no warning.
        assert not caplog.records


@functools.cache
def outputs_and_gradients(use_fused, in_graph):
    """A function that returns outputs, and gradients by the inputs and states."""
    layer = InitStateLSTM(
        UNITS, return_sequences=True, return_state=True, use_fused=use_fused
    )
    layer.build((4, TIMESTEPS, FEATURES))

    def call(x, h, c, mask, training):
        def outputs():
            return layer(x, initial_state=[h, c], mask=mask, training=training)

        return outputs(), gradients(outputs, [x, h, c])

    return tf.function(call) if in_graph else call


@pytest.mark.parametrize("in_graph", [False, True], ids=["eager", "graph"])
@pytest.mark.parametrize("use_fused", [True, False], ids=["fused", "Keras's loop"])
@at_most(25)
@given(data=st.data())
def test_nan_and_infinity_stay_in_their_row(use_fused, in_graph, data):
    call = outputs_and_gradients(use_fused, in_graph)
    clean = [normal(4, TIMESTEPS, FEATURES), normal(4, UNITS), normal(4, UNITS, seed=1)]
    clean = [np.tanh(array) for array in clean]
    mask = data.draw(masks(4, TIMESTEPS))
    training = data.draw(st.booleans())
    row, which = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
    step = data.draw(st.integers(0, TIMESTEPS - 1))
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    changed = [array.copy() for array in clean]
    position = (row, step) if which == 0 else row
    changed[which][position] = value

    def results(arrays):
        return [flat(part) for part in call(*map(tf.constant, arrays), mask, training)]

    others = np.arange(4) != row
    got, want = results(changed), results(clean)
    for a, b in zip(flat(got), flat(want), strict=True):
        assert_same(a[others], b[others])
    is_read = mask is None or (mask[row, step] if which == 0 else mask[row].any())
    if np.isnan(value) and is_read:
        assert np.isnan(got[0][1][row]).all()
    if which == 0 and not is_read:
        assert_same(got[0], want[0])
