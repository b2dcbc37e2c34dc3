"""Calls from several threads at once."""

import threading

import numpy as np
import pytest
from keras import layers

from backends import BACKEND, tf
from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
)
from models import CONTEXT, FEATURES, UNITS, X, encoder, normal
from oracles import assert_same, to_numpy

THREADS = 8
# The calls of each thread. An eager call takes ten times as long on JAX.
CALLS = 20 if BACKEND == "tensorflow" else 5


def in_threads(call, threads=THREADS):
    """The result of `call(index)` in each thread. Raises an error of a thread."""
    results, barrier = [None] * threads, threading.Barrier(threads)

    def run(index):
        barrier.wait()
        try:
            results[index] = call(index)
        except Exception as error:
            results[index] = error

    running = [threading.Thread(target=run, args=[i]) for i in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


class TestTheFirstCall:
    @pytest.mark.parametrize("trial", range(3 if BACKEND == "tensorflow" else 1))
    @pytest.mark.parametrize(
        "make",
        [
            lambda: InitStateLSTM(UNITS, initial_state="trainable"),
            lambda: InitStateLSTM(UNITS, initial_state=0.5, stateful=True),
            lambda: InitStateGRU(UNITS, initial_state=Conditional(encoder())),
            lambda: InitStateBidirectional(InitStateLSTM(UNITS, initial_state=0.5)),
        ],
    )
    def test_builds_a_layer_once(self, make, trial):
        layer = make()
        given = {"context": CONTEXT} if getattr(layer, "takes_context", 0) else {}
        results = in_threads(lambda _: layer(X, **given))
        built = make()
        built(X, **given)
        assert len(layer.weights) == len(built.weights)
        if not getattr(layer, "stateful", False):
            for result in results:
                assert_same(result, layer(X, **given), tolerance=1e-6)

    def test_builds_the_owned_states_once(self):
        layer = InitStateLSTM(UNITS, initial_state=Conditional(layers.Dense(UNITS)))
        in_threads(lambda _: layer.get_initial_state(len(CONTEXT), context=CONTEXT))
        assert len(layer.weights) == 4

    def test_of_keras_builds_it_more_than_once(self):
        # The README says this of Keras. The test fails if Keras changes.
        def fails():
            lstm = layers.LSTM(UNITS)
            try:
                in_threads(lambda _: lstm(X))
            except Exception:
                return True
            return False

        assert any(fails() for _ in range(20))


@pytest.mark.parametrize(
    "wrap",
    [lambda f: f, pytest.param(lambda f: tf.function(f), marks=pytest.mark.tensorflow)],
    ids=["eager", "graph"],
)
def test_of_one_stateless_layer_are_those_of_a_single_thread(wrap):
    layer = InitStateLSTM(UNITS, initial_state=0.5)
    batches = [normal(4, 10, FEATURES, seed=i) for i in range(THREADS)]
    want = [to_numpy(layer(x)) for x in batches]
    call = wrap(lambda x: layer(x))
    call(batches[0])
    for got in in_threads(lambda i: [to_numpy(call(batches[i])) for _ in range(CALLS)]):
        assert all(any(np.allclose(y, w, atol=1e-6) for w in want) for y in got)
    got = in_threads(lambda i: to_numpy(call(batches[i])))
    assert_same(got, want, tolerance=1e-6)


def test_of_one_stream_continue_from_each_other():
    layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
    x = 0.1 * normal(2, 10, FEATURES)
    results = in_threads(lambda _: [to_numpy(layer(x)) for _ in range(CALLS)])
    layer.reset_state()
    alone = [to_numpy(layer(x)) for _ in range(THREADS * CALLS)]
    got = np.sort(np.reshape(results, (len(alone), -1)), axis=0)
    want = np.sort(np.reshape(alone, (len(alone), -1)), axis=0)
    assert_same(got, want)


def test_one_may_reset_while_others_call():
    layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
    x = normal(2, 10, FEATURES)
    first = to_numpy(layer(x))
    states = [np.full((2, UNITS), 0.25, "float32")] * 2

    def call(index):
        if index == 0:
            for _ in range(CALLS):
                layer.reset_states(states)
            return None
        return [to_numpy(layer(x)) for _ in range(CALLS)]

    in_threads(call)
    layer.reset_state()
    assert_same(layer(x), first)
