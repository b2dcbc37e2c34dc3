"""The graphs that run on a GPU. Tracing them needs no GPU."""

import numpy as np
import pytest
from keras import layers

from backends import tf
from keras_init_lstm import InitStateBidirectional, InitStateLSTM
from keras_init_lstm.loops import tensorflow as fused
from models import BATCH, FEATURES, KINDS, MAKERS, UNITS, normal, of_keras, ours
from oracles import assert_same, dense_of, tiled_states

pytestmark = pytest.mark.tensorflow

TIMESTEPS = 10  # The fused loop does not run for fewer than 8.
X = normal(BATCH, TIMESTEPS, FEATURES)
NAMES = ["LSTM", "GRU"]
CUDNN = "CudnnRNNV3"
LENGTHS = np.array([[10], [7], [1], [4]])


@pytest.fixture(autouse=True)
def _gpu(monkeypatch):
    """Makes Keras and the fused loop believe that there is a GPU."""
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda *_: ["GPU"])
    fused.available.cache_clear()
    yield
    fused.available.cache_clear()


class Graph:
    """The graph of a call of a layer, which is traced and never run.

    Args:
        layer: A layer that is not built.
        given: The inputs of the call besides the sequences: `context`, `mask` or both.
        training: Boolean, whether the layer is called in training mode.
        result: Function that takes the call and returns the outputs of the graph.
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
        """The inputs, variables and outputs of cuDNN from which a tensor is computed.

        A variable is its `id`, an input its name. A tensor whose shape alone is used is
        not a source.
        """
        sources, seen, pending = set(), set(), [tensor]
        while pending:
            current = pending.pop()
            if current.name in seen:
                continue
            seen.add(current.name)
            if current.op.type == "Placeholder":
                sources.add(self.variables.get(current.name, current.op.name))
            elif current.op.type.startswith("Cudnn"):
                output = current.op.op_def.output_arg[current.value_index].name
                sources.add((current.op.type, output))
            elif current.op.type != "Shape":
                pending += current.op.inputs
        return sources


def ids(variables):
    return {id(variable.value) for variable in variables}


def inputs_for(kind):
    return ["context"] if kind.startswith("conditional") else []


def owned_sources(layer, index, training=False):
    """The sources of a state of a layer, as `Graph.sources()` returns them."""
    kind = layer.initial_state[index]
    sources = set()
    if kind is not None:
        uses_all = training or not hasattr(kind, "stddev")
        if kind.takes_context:
            sources |= {"context"} | ids(dense_of(layer, index).variables)
        else:
            sources |= ids(kind.variables if uses_all else [kind.mean])
    if layer.stateful:
        sources |= ids(layer.states[index].variables)
    return sources


class TestStates:
    @pytest.mark.parametrize("training", [False, True])
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("name", NAMES)
    def test_are_the_owned_states(self, name, kind, stateful, training):
        layer = ours(name, kind, stateful=stateful)
        graph = Graph(layer, inputs_for(kind), training)
        (op,) = graph.operations(CUDNN)
        # Its inputs are the sequences, h, c (zero for a GRU), the weights and lengths.
        for index, _ in enumerate(layer.state_names):
            assert graph.sources(op.inputs[1 + index]) == owned_sources(
                layer, index, training
            )
        assert graph.sources(op.inputs[3]) == ids(layer.cell.weights)
        assert graph.sources(graph.outputs[0]) == {(CUDNN, "output_h")}
        assert not graph.operations("While")

    @pytest.mark.parametrize("name", NAMES)
    def test_the_outputs_of_cudnn_are_carried(self, name):
        layer = ours(name, stateful=True)
        graph = Graph(layer)
        assigned = {
            graph.variables[op.inputs[0].name]: graph.sources(op.inputs[1])
            for op in graph.operations("AssignVariableOp")
        }
        for state, output in zip(layer.states, ["output_h", "output_c"], strict=False):
            carried, *fresh = state.variables
            assert assigned[id(carried.value)] == {(CUDNN, output)}
            assert all(assigned[id(v.value)] == set() for v in fresh)

    @pytest.mark.parametrize("kind", ["trainable", "conditional"])
    @pytest.mark.parametrize("name", NAMES)
    def test_gradients_come_from_cudnn(self, name, kind):
        layer = ours(name, kind)

        def gradients(call):
            watched = [e.trainable_variables[0].value for e in layer.initial_state]
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(call() ** 2)
            return tape.gradient(loss, watched)

        graph = Graph(layer, inputs_for(kind), True, gradients)
        found = [graph.sources(output) - {"context"} for output in graph.outputs]
        assert found == [
            {("CudnnRNNBackpropV3", f"input_{state}_backprop")}
            for state, _ in zip("hc", layer.state_names, strict=False)
        ]

    @pytest.mark.parametrize("name", NAMES)
    def test_each_direction_has_its_own_states(self, name):
        for wrapper, kind in (
            (layers.Bidirectional, "trainable"),
            (InitStateBidirectional, "trainable"),
            (InitStateBidirectional, "conditional"),
        ):
            layer = wrapper(ours(name, kind))
            graph = Graph(layer, inputs_for(kind))
            ops = graph.operations(CUDNN)
            directions = [layer.forward_layer, layer.backward_layer]
            for op, direction in zip(ops, directions, strict=True):
                assert graph.sources(op.inputs[3]) == ids(direction.cell.weights)
                for index, _ in enumerate(direction.state_names):
                    found = graph.sources(op.inputs[1 + index])
                    assert found == owned_sources(direction, index)


def lengths_of(graph):
    (op,) = graph.operations(CUDNN)
    return graph.sources(op.inputs[4])


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", NAMES)
class TestMasks:
    def test_right_padded_masks_become_lengths(self, make, name):
        graph = Graph(make(name), ["mask"])
        assert lengths_of(graph) == {"mask"}
        (op,) = graph.operations("Assert")
        assert graph.sources(op.inputs[0]) == {"mask"}
        assert b"right-padded" in tf.get_static_value(op.inputs[1]).item()
        assert lengths_of(Graph(make(name))) == set()

    def test_any_mask_in_eager_calls(self, make, name):
        """Keras's own loop runs if cuDNN does not support the mask, or is missing."""
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


UNSUPPORTED = {
    "LSTM": [
        {"use_cudnn": False},
        {"recurrent_dropout": 0.5},
        {"unroll": True},
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"use_bias": False},
    ]
}
UNSUPPORTED["GRU"] = [*UNSUPPORTED["LSTM"], {"reset_after": False}]
SUPPORTED = [
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
    @configurations(dict.fromkeys(NAMES, SUPPORTED))
    def test_for_supported_arguments(self, make, name, arguments):
        layer = make(name, **arguments)
        graph = Graph(layer, training=True)
        assert len(graph.operations(CUDNN)) == 1
        assert not layer.supports_jit

    @configurations(UNSUPPORTED)
    def test_not_for_unsupported_arguments(self, make, name, arguments):
        layer = make(name, **arguments)
        graph = Graph(layer, training=True)
        assert not graph.operations(CUDNN)
        assert bool(graph.operations("While")) != layer.unroll
        # Keras decides about XLA in the constructor, without `recurrent_dropout`.
        assert layer.supports_jit == ("recurrent_dropout" not in arguments)

    @configurations({name: UNSUPPORTED[name][1:] for name in NAMES})
    def test_use_cudnn_raises_for_unsupported_arguments(self, make, name, arguments):
        layer = make(name, use_cudnn=True, **arguments)
        with pytest.raises(ValueError, match="cuDNN is not supported"):
            Graph(layer)


@pytest.mark.parametrize("name", NAMES)
def test_a_cell_that_computes_something_else_is_called(name):
    class Doubling(getattr(layers, f"{name}Cell")):
        def call(self, *args, **kwargs):
            h, states = super().call(*args, **kwargs)
            return 2 * h, states

    graph = Graph(with_cell(ours(name), Doubling))
    assert not graph.operations(CUDNN) and graph.operations("While")
    with pytest.raises(ValueError, match=f"cuDNN does not support .*{name}Cell"):
        Graph(with_cell(ours(name, use_cudnn=True), Doubling))


def with_cell(layer, cls):
    layer.cell = cls(UNITS)
    return layer


def test_the_error_of_the_fused_loop():
    with pytest.raises(ValueError, match="does not support a GPU.*use_fused=True"):
        Graph(InitStateLSTM(UNITS, use_fused=True))
