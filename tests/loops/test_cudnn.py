"""The graphs that run on a GPU: to trace them takes none, only to run them does."""

import numpy as np
import pytest
from keras import layers

from backends import tf
from keras_init_lstm import InitStateBidirectional, InitStateLSTM
from keras_init_lstm.loops import tensorflow as fused
from models import BATCH, FEATURES, KINDS, MAKERS, UNITS, normal, of_keras, ours
from oracles import assert_same, tiled_states

pytestmark = pytest.mark.tensorflow

TIMESTEPS = 10  # With few, the fused loop would not run anyway.
X = normal(BATCH, TIMESTEPS, FEATURES)
NAMES = ["LSTM", "GRU"]
CUDNN = "CudnnRNNV3"
LENGTHS = np.array([[10], [7], [1], [4]])


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """Keras and the fused loop find a GPU, as they look for one."""
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda *_: ["GPU"])
    fused.available.cache_clear()
    yield
    fused.available.cache_clear()


class Graph:
    """What TensorFlow traces for a call of a layer, and never runs here.

    Args:
        layer: A layer that is not built.
        given: Which of `context` and `mask` the layer is given, as inputs of the graph.
        training: Boolean, whether the layer is called in training mode.
        result: Function of the call that returns what the graph computes.
    """

    def __init__(self, layer, given=(), training=False, result=lambda call: call()):
        shapes = {"context_shape": (BATCH, 6)} if "context" in given else {}
        layer.build(X.shape, **shapes)
        layer.built = True
        specs = {
            "x": tf.TensorSpec(X.shape),
            "context": tf.TensorSpec((BATCH, 6)),
            "mask": tf.TensorSpec((BATCH, TIMESTEPS), "bool"),
        }

        @tf.function(autograph=False)
        def function(**inputs):
            kwargs = {name: inputs[name] for name in given}
            return result(lambda: layer(inputs["x"], training=training, **kwargs))

        concrete = function.get_concrete_function(**specs)
        self.graph, self.outputs = concrete.graph, concrete.outputs
        handles = {id(outer): inner.name for outer, inner in self.graph.captures}
        self.variables = {
            handles[id(v.handle)]: id(v)
            for v in self.graph.variables
            if id(v.handle) in handles
        }

    def operations(self, kind):
        return [op for op in self.graph.get_operations() if op.type == kind]

    def sources(self, tensor):
        """What a tensor is made from: inputs, variables, outputs of cuDNN.

        Of a variable its `id`, of an input its name. What only the shape of a tensor
        goes into is not made from it.
        """
        found, seen, pending = set(), set(), [tensor]
        while pending:
            each = pending.pop()
            if each.name in seen:
                continue
            seen.add(each.name)
            if each.op.type == "Placeholder":
                found.add(self.variables.get(each.name, each.op.name))
            elif each.op.type.startswith("Cudnn"):
                output = each.op.op_def.output_arg[each.value_index].name
                found.add((each.op.type, output))
            elif each.op.type != "Shape":
                pending += each.op.inputs
        return found


def ids(variables):
    return {id(variable.value) for variable in variables}


def given_to(kind):
    return ["context"] if kind == "conditional" else []


def owned(layer, index, training=False):
    """What `Graph.sources` is to find for a state of a layer."""
    kind = layer.initial_state[index]
    found = set()
    if kind is not None:
        drawn = training or not hasattr(kind, "stddev")
        found |= ids(kind.variables if drawn else [kind.mean])
        found |= {"context"} if kind.takes_context else set()
    if layer.stateful:
        found |= ids(layer.states[index].variables)
    return found


class TestStates:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", NAMES)
    def test_are_what_the_layer_owns(self, name, kind, stateful, training):
        layer = ours(name, kind, stateful=stateful)
        graph = Graph(layer, given_to(kind), training)
        (op,) = graph.operations(CUDNN)
        # Its inputs are the sequences, h, c (of a GRU a zero), the weights and lengths.
        for index, _ in enumerate(layer.state_names):
            assert graph.sources(op.inputs[1 + index]) == owned(layer, index, training)
        assert graph.sources(op.inputs[3]) == ids(layer.cell.weights)
        assert graph.sources(graph.outputs[0]) == {(CUDNN, "output_h")}
        assert not graph.operations("While")

    @pytest.mark.parametrize("name", NAMES)
    def test_are_carried_from_what_it_returns(self, name):
        layer = ours(name, stateful=True)
        graph = Graph(layer)
        assigned = {
            graph.variables[op.inputs[0].name]: graph.sources(op.inputs[1])
            for op in graph.operations("AssignVariableOp")
        }
        for state, output in zip(layer.states, ["output_h", "output_c"], strict=False):
            carried, *fresh = state.variables
            assert assigned[id(carried.value)] == {(CUDNN, output)}
            assert all(assigned[id(each.value)] == set() for each in fresh)

    @pytest.mark.parametrize("kind", ["trainable", "conditional"])
    @pytest.mark.parametrize("name", NAMES)
    def test_get_their_gradients_from_it(self, name, kind):
        layer = ours(name, kind)

        def gradients(call):
            watched = [e.trainable_variables[0].value for e in layer.initial_state]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(call() ** 2)
            return tape.gradient(loss, watched)

        graph = Graph(layer, given_to(kind), True, gradients)
        found = [graph.sources(output) - {"context"} for output in graph.outputs]
        assert found == [
            {("CudnnRNNBackpropV3", f"input_{state}_backprop")}
            for state, _ in zip("hc", layer.state_names, strict=False)
        ]

    @pytest.mark.parametrize("name", NAMES)
    def test_of_each_direction_are_its_own(self, name):
        for wrapper, kind in (
            (layers.Bidirectional, "trainable"),
            (InitStateBidirectional, "trainable"),
            (InitStateBidirectional, "conditional"),
        ):
            layer = wrapper(ours(name, kind))
            graph = Graph(layer, given_to(kind))
            ops = graph.operations(CUDNN)
            directions = [layer.forward_layer, layer.backward_layer]
            for op, direction in zip(ops, directions, strict=True):
                assert graph.sources(op.inputs[3]) == ids(direction.cell.weights)
                for index, _ in enumerate(direction.state_names):
                    found = graph.sources(op.inputs[1 + index])
                    assert found == owned(direction, index)


def lengths_of(graph):
    (op,) = graph.operations(CUDNN)
    return graph.sources(op.inputs[4])


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", NAMES)
class TestMasks:
    def test_become_lengths_if_they_are_right_padded(self, make, name):
        graph = Graph(make(name), ["mask"])
        assert lengths_of(graph) == {"mask"}
        (op,) = graph.operations("Assert")
        assert graph.sources(op.inputs[0]) == {"mask"}
        assert b"right-padded" in tf.get_static_value(op.inputs[1]).item()
        assert lengths_of(Graph(make(name))) == set()

    def test_of_any_kind_are_right_in_eager_calls(self, make, name):
        """There Keras's own loop runs if cuDNN does not take the mask, or is none."""
        layer = make(name)
        layer.build(X.shape)
        loop = of_keras(name, use_cudnn=False)
        loop.build(X.shape)
        cell = getattr(layer, "cell", layer)
        loop.set_weights(cell.get_weights())
        states = tiled_states(layer, BATCH) if make is ours else None
        right = np.arange(TIMESTEPS) < LENGTHS
        for mask in (None, right, right[:, ::-1], right & (np.arange(TIMESTEPS) != 2)):
            want = loop(X, initial_state=states, mask=mask)
            assert_same(layer(X, mask=mask), want)


REFUSED = {
    "LSTM": [
        {"use_cudnn": False},
        {"recurrent_dropout": 0.5},
        {"unroll": True},
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"use_bias": False},
    ]
}
REFUSED["GRU"] = [*REFUSED["LSTM"], {"reset_after": False}]
TAKEN = [
    {},
    {"use_cudnn": True},
    {"go_backwards": True, "return_sequences": True},
    {"dropout": 0.5},
    {"dtype": "mixed_float16"},
    {"dtype": "float64"},
]


def configurations(of_name):
    pairs = [(name, arguments) for name in NAMES for arguments in of_name[name]]
    return pytest.mark.parametrize(("name", "arguments"), pairs, ids=str)


@pytest.mark.parametrize("make", MAKERS)
class TestWhenItRuns:
    @configurations(dict.fromkeys(NAMES, TAKEN))
    def test_where_keras_takes_it(self, make, name, arguments):
        layer = make(name, **arguments)
        graph = Graph(layer, training=True)
        assert len(graph.operations(CUDNN)) == 1
        assert not layer.supports_jit

    @configurations(REFUSED)
    def test_not_where_keras_refuses_it(self, make, name, arguments):
        layer = make(name, **arguments)
        graph = Graph(layer, training=True)
        assert not graph.operations(CUDNN)
        assert bool(graph.operations("While")) != layer.unroll
        # What Keras decides before the first call does not know of this one.
        assert layer.supports_jit == ("recurrent_dropout" not in arguments)

    @configurations({name: REFUSED[name][1:] for name in NAMES})
    def test_is_an_error_where_it_must_run_and_cannot(self, make, name, arguments):
        layer = make(name, use_cudnn=True, **arguments)
        with pytest.raises(ValueError, match="cuDNN is not supported"):
            Graph(layer)


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_that_computes_something_else_is_called(name):
    class Doubling(getattr(layers, f"{name}Cell")):
        def call(self, *args, **kwargs):
            h, states = super().call(*args, **kwargs)
            return 2 * h, states

    graph = Graph(of_another_cell(ours(name), Doubling))
    assert not graph.operations(CUDNN) and graph.operations("While")
    with pytest.raises(ValueError, match=f"cuDNN does not support .*{name}Cell"):
        Graph(of_another_cell(ours(name, use_cudnn=True), Doubling))


def of_another_cell(layer, cls):
    layer.cell = cls(UNITS)
    return layer


def test_the_fused_loop_is_refused_in_words():
    with pytest.raises(ValueError, match="does not support a GPU.*use_fused=True"):
        Graph(InitStateLSTM(UNITS, use_fused=True))
