"""A layer called very often: no memory that grows, no trace after the first ones.

`make hammer` runs the full numbers, and prints the figures of Keras's LSTM as well.
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
from keras_init_lstm.loops import tensorflow_loop as fused_loop
from models import FEATURES, UNITS, normal
from oracles import assert_same, flat, gradients
from strategies import at_most, masks

pytestmark = pytest.mark.tensorflow

TIMESTEPS = 9
FULL = os.environ.get("HAMMER") == "full"
STREAM_CALLS, SHAPED_CALLS = (100_000, 10_000) if FULL else (2_000, 200)
# Keras's loop is made anew at each call.
EAGER_IS_SLOWER = 10
# What is kept between calls grows with each; the allocator's noise does not.
FEW_MIB, FEW_OBJECTS = 16, 100
BATCHES, LENGTHS = ((1, 5, 13), (1, 8, 9, 23))
SHAPES = list(itertools.product(BATCHES, LENGTHS))


def resident_mib():
    """The memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def tracked_objects():
    gc.collect()
    return len(gc.get_objects())


def hammer(name, call, calls, warm_up, traces):
    """Calls with each index in turn, and checks that nothing is left behind."""
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
    """One entry for each time that a function of the fused loop was traced."""
    found = []

    def recorded(function):
        def trace(*args, **kwargs):
            found.append(function)
            return function(*args, **kwargs)

        return trace

    fused_loop._compiled.cache_clear()
    for name in ("_forward", "_backward_loop"):
        monkeypatch.setattr(fused_loop, name, recorded(getattr(fused_loop, name)))
    yield found
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
def test_a_stream_leaves_nothing_behind(maker, way, traces):
    layer = MAKERS[maker](stateful=True)
    x = tf.constant(normal(2, 8, FEATURES))
    layer(x)
    call = tf.function(layer) if way == "graph" else layer

    def one(index):
        call(x)
        if index % 100 == 99:
            layer.reset_state()

    def count():
        of_graph = call.experimental_get_tracing_count() if way == "graph" else 0
        return of_graph + len(traces)

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
def test_many_shapes_leave_nothing_behind(maker, way, traces, caplog):
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
    else:  # The functions are then the layer's own, and no matter of the user.
        assert not caplog.records


# What is not a number, in one row of a batch.


@functools.cache
def watched(use_fused, in_graph):
    """A function that returns outputs, and the gradients of what is in the rows."""
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
def test_what_is_no_number_stays_in_its_row(use_fused, in_graph, data):
    call = watched(use_fused, in_graph)
    clean = [normal(4, TIMESTEPS, FEATURES), normal(4, UNITS), normal(4, UNITS, seed=1)]
    clean = [np.tanh(array) for array in clean]
    mask = data.draw(masks(4, TIMESTEPS))
    training = data.draw(st.booleans())
    row, which = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 2))
    step = data.draw(st.integers(0, TIMESTEPS - 1))
    value = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    poisoned = [array.copy() for array in clean]
    place = (row, step) if which == 0 else row
    poisoned[which][place] = value

    def results(arrays):
        return [flat(part) for part in call(*map(tf.constant, arrays), mask, training)]

    others = np.arange(4) != row
    got, want = results(poisoned), results(clean)
    for a, b in zip(flat(got), flat(want), strict=True):
        assert_same(a[others], b[others])
    is_read = mask is None or (mask[row, step] if which == 0 else mask[row].any())
    if np.isnan(value) and is_read:
        assert np.isnan(got[0][1][row]).all()
    if which == 0 and not is_read:
        assert_same(got[0], want[0])
