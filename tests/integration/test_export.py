"""Files for other runtimes: SavedModel, ONNX, OpenVINO and LiteRT."""

import argparse
import ast
import bisect
import calendar
import collections
import importlib.util
import inspect

import keras
import numpy as np
import onnx
import pytest
import tf2onnx
from ai_edge_litert.interpreter import Interpreter
from keras import layers

import keras_init_lstm
from backends import RELEASE, in_a_fresh_process, tf
from exports import (
    assert_decodes_the_same_tokens,
    on_onnx,
    on_openvino,
    translator,
)
from keras_init_lstm import InitStateLSTM, Sampled
from keras_init_lstm.streams import with_states_as_inputs
from models import (
    BATCH,
    FEATURES,
    KINDS,
    MAKERS,
    UNITS,
    models_to_save,
    normal,
    of_keras,
    ours,
)
from oracles import assert_same, flat, tiled_states, to_numpy

pytestmark = pytest.mark.tensorflow

TIMESTEPS = 10  # The fused loop does not run for fewer than 8.
X, CONTEXT = normal(BATCH, TIMESTEPS, FEATURES), normal(BATCH, 6)
NAMES = ["LSTM", "GRU"]
CLOSE = 1e-5
DRAWN = Sampled(at_inference="sample")


def model_of_every_kind(name, stateful):
    """A model with a layer for each kind, and the expected outputs of two calls.

    Layers of Keras compute the outputs. They get the tiled states at the first call,
    and carry their states to the second.
    """
    batch_size = BATCH if stateful else None
    x = keras.Input((TIMESTEPS, FEATURES), batch_size, name="x")
    context = keras.Input((6,), batch_size, name="context")
    arguments = {"stateful": stateful, "return_sequences": True}
    family = [ours(name, kind, **arguments) for kind in KINDS]
    outputs = [
        layer(x, context=context) if layer.takes_context else layer(x)
        for layer in family
    ]
    model = keras.Model([x, context], outputs)
    for index, weight in enumerate(model.weights):
        weight.assign(normal(*weight.shape, seed=index))
    calls = [], []
    for layer in family:
        reference = of_keras(name, **arguments)
        reference.build(X.shape)
        reference.set_weights(layer.cell.get_weights())
        states = tiled_states(layer, BATCH, CONTEXT)
        calls[0].append(to_numpy(reference(X, initial_state=states)))
        calls[1].append(to_numpy(reference(X)) if stateful else calls[0][-1])
    return model, calls


def stateful_model(make):
    layer = make("LSTM", stateful=True, return_sequences=True)
    return keras.Sequential([keras.Input(X.shape[1:], BATCH), layer])


def wrapped_layers(make):
    """A model with layers for which Keras writes a loop in every format."""
    return keras.Sequential(
        [
            keras.Input(X.shape[1:]),
            layers.Masking(),
            layers.Bidirectional(make("LSTM")),
        ]
    )


def around(layer):
    return keras.Sequential([keras.Input(X.shape[1:]), layer])


class Noise(layers.Layer):
    """A layer that draws random numbers, without this package."""

    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, x):
        shape = keras.ops.shape(x)
        return x + keras.random.normal(shape, seed=self.seed_generator)


def traced_before(model, *inputs):
    """A function of a model that ran before its export, and the exported outputs.

    With the fixture `fused_adds_one` it runs the fused loop, and an export does not.
    """
    function = tf.function(model)
    want = model(*inputs)
    assert_same(function(*inputs), want, tolerance=1e-6)
    return function, [output - 1 for output in keras.tree.flatten(want)]


# SavedModel.

SERVE = """
import pathlib, sys
for name in ("keras", "keras_init_lstm", "tf_keras"):
    sys.modules[name] = None  # An import raises.
import numpy as np, tensorflow as tf
for folder in map(pathlib.Path, sys.argv[1:]):
    model = tf.saved_model.load(str(folder / "model"))
    x, context, *calls = np.load(folder / "arrays.npz").values()
    for want in calls:
        got = model.serve([tf.constant(x), tf.constant(context)])
        np.testing.assert_allclose(np.stack(got), want, rtol=1e-5, atol=1e-5)
    print(folder.name)
"""


def with_endpoint(model, path, **endpoint):
    """Writes a SavedModel that has a function without inputs next to `serve`."""
    archive = keras.export.ExportArchive()
    spec = keras.InputSpec(shape=X.shape, dtype="float32")
    archive.track_and_add_endpoint("serve", model, [spec])
    for name, function in endpoint.items():
        archive.add_endpoint(name, function, input_signature=[])
    archive.write_out(path, verbose=False)
    return tf.saved_model.load(str(path))


class TestSavedModel:
    def test_runs_without_keras_and_this_package(self, tmp_path):
        for name in NAMES:
            for stateful in (False, True):
                model, calls = model_of_every_kind(name, stateful)
                folder = tmp_path / f"{name}-{stateful}"
                model.export(folder / "model", verbose=False)
                np.savez(folder / "arrays.npz", X, CONTEXT, *map(np.stack, calls))
        folders = sorted(tmp_path.iterdir())
        printed = in_a_fresh_process(SERVE, *folders)
        assert printed.split() == [folder.name for folder in folders]

    def test_of_models_as_users_build_them(self, tmp_path):
        for model, x in models_to_save().values():
            want = model(x)
            keras_init_lstm.streams.reset_states(model)
            model.export(tmp_path / "model", verbose=False)
            exported = tf.saved_model.load(str(tmp_path / "model"))
            assert_same(exported.serve(x), want, tolerance=1e-6)

    def test_takes_any_size(self, tmp_path):
        layer = InitStateLSTM(UNITS, initial_state=0.5)
        model = keras.Sequential([keras.Input((None, FEATURES)), layer])
        model.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        for x in (X, X[:2, :3]):
            assert_same(loaded.serve(x), model(x), tolerance=CLOSE)

    @pytest.mark.parametrize("use_fused", ["auto", True])
    def test_holds_no_compiled_loop_by_default(self, use_fused, tmp_path):
        model = around(InitStateLSTM(UNITS, initial_state=0.5, use_fused=use_fused))
        want = model.predict(X, verbose=0)
        model.export(tmp_path / "model", verbose=False)
        tf.saved_model.save(model, tmp_path / "other")
        for name in ("model", "other"):
            graph = (tmp_path / name / "saved_model.pb").read_bytes()
            assert (b"_XlaMustCompile" in graph) == (use_fused is True)
            loaded = tf.saved_model.load(str(tmp_path / name))
            (got,) = loaded.signatures["serving_default"](tf.constant(X)).values()
            assert_same(got, want, tolerance=1e-6)

    @pytest.mark.usefixtures("fused_adds_one")
    def test_a_function_that_ran_before(self, tmp_path):
        model, (want, _) = model_of_every_kind("LSTM", stateful=False)
        function, outputs = traced_before(model, [X, CONTEXT])
        assert_same(outputs, want, tolerance=CLOSE)
        archive = keras.export.ExportArchive()
        archive.track(model)
        archive.add_endpoint("serve", function)
        archive.write_out(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        tf.saved_model.save(loaded, tmp_path / "again" / "model")
        for folder in (tmp_path, tmp_path / "again"):
            graph = (folder / "model" / "saved_model.pb").read_bytes()
            assert b"_XlaMustCompile" not in graph
            np.savez(folder / "arrays.npz", X, CONTEXT, np.stack(want))
        in_a_fresh_process(SERVE, tmp_path, tmp_path / "again")

    def test_draws_if_the_layer_does(self, tmp_path):
        around(InitStateLSTM(UNITS, initial_state=DRAWN)).export(
            tmp_path / "model", verbose=False
        )
        loaded = tf.saved_model.load(str(tmp_path / "model"))
        assert (to_numpy(loaded.serve(X)) != to_numpy(loaded.serve(X))).all()

    @pytest.mark.parametrize("make", MAKERS)
    def test_an_endpoint_resets_a_stream(self, make, tmp_path):
        model = stateful_model(make)
        first, second = flat([model(X), model(X)])

        def reset():
            keras_init_lstm.streams.reset_states(model)
            return tf.constant(True)  # An endpoint must return a tensor.

        loaded = with_endpoint(model, tmp_path / "model", reset=reset)
        # The file continues from the carried states.
        assert_same(loaded.serve(X), model(X), tolerance=CLOSE)
        for reset_endpoint in (loaded.reset, loaded.signatures["reset"]):
            reset_endpoint()
            assert_same(loaded.serve(X), first, tolerance=CLOSE)
            assert_same(loaded.serve(X), second, tolerance=CLOSE)
        keras_init_lstm.streams.reset_states(model)
        fresh = with_endpoint(model, tmp_path / "fresh")
        assert_same(fresh.serve(X), first, tolerance=CLOSE)
        assert np.abs(first - second).max() > 100 * CLOSE

    @pytest.mark.parametrize("make", MAKERS)
    def test_an_endpoint_must_return_a_tensor(self, make, tmp_path):
        model = stateful_model(make)
        with pytest.raises(ValueError, match="must be a single Tensor"):
            with_endpoint(model, tmp_path, reset=model.layers[0].reset_state)


# ONNX.


def onnx_file(model, folder, **kwargs):
    if isinstance(model, keras.Sequential):
        model(X)  # Keras exports no model that was never called.
    model.export(folder / "model.onnx", format="onnx", verbose=False, **kwargs)
    return folder / "model.onnx"


def loops(graph):
    operations = collections.Counter(node.op_type for node in graph.node)
    wanted = ("LSTM", "GRU", "Loop", "Scan")
    return {op: operations[op] for op in wanted if op in operations}


def origin(graph, name):
    """The values or the name of the input from which a tensor is computed.

    It follows the first input of each node, which is the tiled tensor of a tiling.
    """
    producers = {output: node for node in graph.node for output in node.output}
    while name in producers:
        name = producers[name].input[0]
    arrays = {x.name: onnx.numpy_helper.to_array(x) for x in graph.initializer}
    if name not in arrays:
        return name
    return tuple(np.resize(arrays[name].ravel()[:UNITS], UNITS))


class TestONNX:
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_runs_from_the_owned_states(self, name, stateful, tmp_path):
        model, (want, _) = model_of_every_kind(name, stateful)
        model([X, CONTEXT])
        keras_init_lstm.streams.reset_states(model)
        path = onnx_file(model, tmp_path)
        for _ in range(2):  # An ONNX file carries no states.
            assert_same(on_onnx(path)(X, CONTEXT), want, tolerance=CLOSE)

        graph = onnx.load(path).graph
        # tf2onnx recognises the LSTM of Keras 3.12 and later.
        is_recognised = name == "LSTM" and RELEASE >= (3, 12)
        operation = "LSTM" if is_recognised else "Loop"
        assert loops(graph) == {operation: len(KINDS)}
        # The inputs 5 and 6 of an LSTM are `initial_h` and `initial_c`.
        states = slice(5, 7) if is_recognised else slice(None)
        origins = [
            {origin(graph, state) for state in node.input[states]}
            for node in graph.node
            if node.op_type == operation
        ]
        for layer in model.layers[2:]:
            states = tiled_states(layer, BATCH, CONTEXT)
            owned = {"context" if layer.takes_context else tuple(s[0]) for s in states}
            assert any(owned <= origins_of_node for origins_of_node in origins)

    def test_has_the_operations_of_keras_layers(self, tmp_path):
        found = []
        for make in MAKERS:
            model = wrapped_layers(make)
            path = onnx_file(model, tmp_path)
            assert_same(on_onnx(path)(X), [model(X)], tolerance=CLOSE)
            found.append(loops(onnx.load(path).graph))
        assert found[0] == found[1]

    @pytest.mark.usefixtures("fused_adds_one")
    def test_a_function_that_ran_before(self, tmp_path):
        model = around(InitStateLSTM(UNITS, initial_state=0.5))
        function, want = traced_before(model, X)
        path = tmp_path / "model.onnx"
        specs = [tf.TensorSpec(X.shape)]
        tf2onnx.convert.from_function(function, specs, output_path=path)
        assert function.experimental_get_tracing_count() == 1
        assert_same(on_onnx(path)(X), want, tolerance=CLOSE)
        operation = "LSTM" if RELEASE >= (3, 12) else "Loop"
        assert loops(onnx.load(path).graph) == {operation: 1}

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"use_fused": True}, "does not support an export to ONNX.*use_fused=True"),
            ({"initial_state": DRAWN}, "can't draw.*Received: at_inference='sample'"),
        ],
        ids=["fused", "drawn"],
    )
    def test_unsupported_layers_raise(self, arguments, message, tmp_path):
        layer = InitStateLSTM(UNITS, **arguments)
        model = around(layer)
        with pytest.raises(ValueError, match=message):
            onnx_file(model, tmp_path)
        with pytest.raises(ValueError, match=message):
            tf2onnx.convert.from_function(tf.function(model), [tf.TensorSpec(X.shape)])
        assert not list(tmp_path.iterdir())
        # Follow the advice in the messages.
        layer.use_fused = "auto"
        for kind in filter(None, layer.initial_state):
            kind.at_inference = "mean"
        path = onnx_file(model, tmp_path)
        assert_same(on_onnx(path)(X), [model(X)], tolerance=CLOSE)

    @pytest.mark.parametrize("batch_size", [None, BATCH])
    def test_keras_layers_do_not_draw(self, batch_size, tmp_path):
        model = around(Noise())
        spec = keras.InputSpec(shape=(batch_size, *X.shape[1:]), dtype="float32")
        path = onnx_file(model, tmp_path, input_signature=[spec])
        if batch_size is None:
            with pytest.raises(Exception, match="StatelessRandomNormalV2"):
                on_onnx(path)(X)
        else:
            assert_same(on_onnx(path)(X), on_onnx(path)(X))


has_openvino = pytest.mark.skipif(
    RELEASE < (3, 12) or not importlib.util.find_spec("openvino"),
    reason="an older Keras, or no OpenVINO",
)


@has_openvino
@pytest.mark.parametrize("make", MAKERS)
def test_openvino_does_not_support_keras_loop(make, tmp_path):
    model = keras.Sequential([keras.Input((3, FEATURES)), make("LSTM")])
    with pytest.raises(Exception, match="No conversion rule.*TensorList"):
        model.export(str(tmp_path / "model.xml"), format="openvino", verbose=False)


@has_openvino
def test_openvino_runs_unrolled_layers(tmp_path):
    x = keras.Input((3, FEATURES), name="x")
    context = keras.Input((6,), name="context")
    outputs = [
        InitStateLSTM(UNITS, unroll=True, initial_state=[0.5, "trainable"])(x),
        ours("LSTM", "conditional", unroll=True)(x, context=context),
    ]
    model = keras.Model([x, context], outputs)
    for index, weight in enumerate(model.weights):
        weight.assign(normal(*weight.shape, seed=index))
    path = str(tmp_path / "model.xml")
    model.export(path, format="openvino", verbose=False)
    call = on_openvino(path)
    for rows in (BATCH, 2):
        inputs = [X[:rows, :3], CONTEXT[:rows]]
        got = call(*inputs)
        # After the outputs of the model, OpenVINO returns other tensors.
        assert_same(got[:2], model(inputs), tolerance=CLOSE)


@pytest.mark.skipif(RELEASE < (3, 15), reason="Keras writes none before 3.15")
def test_the_format_of_pytorch_raises(tmp_path):
    with pytest.raises(ValueError, match="requires PyTorch backend"):
        around(ours("LSTM")).export(tmp_path / "model.pt2", format="torch")


def test_onnx_needs_a_call_or_a_signature(tmp_path):
    model = around(InitStateLSTM(UNITS, initial_state=0.5))
    path = tmp_path / "model.onnx"
    with pytest.raises(ValueError, match="has never called"):
        model.export(path, format="onnx", verbose=False)
    spec = [keras.InputSpec(shape=(None, *X.shape[1:]), dtype="float32")]
    model.export(path, format="onnx", verbose=False, input_signature=spec)
    assert_same(on_onnx(path)(X), [model(X)], tolerance=CLOSE)


# LiteRT.


def lite_file(model, folder, batch_size=BATCH):
    specs = [
        keras.InputSpec(shape=(batch_size, *x.shape[1:]), dtype="float32")
        for x in model.inputs
    ]
    model.export(
        folder / "model.tflite",
        format="litert",
        verbose=False,
        input_signature=specs if len(specs) == 1 else [specs],
        # A standard interpreter has no other operations.
        target_spec={"supported_ops": [tf.lite.OpsSet.TFLITE_BUILTINS]},
    )
    return folder / "model.tflite"


def on_lite(path):
    """A LiteRT file on an interpreter, as a function of inputs of different ranks."""
    run = Interpreter(str(path)).get_signature_runner()
    ranks = {name: len(d["shape"]) for name, d in run.get_input_details().items()}

    def call(*inputs):
        given = {name: x for name, n in ranks.items() for x in inputs if x.ndim == n}
        outputs = run(**given)
        return [outputs[name] for name in sorted(outputs)]

    return call


@pytest.mark.usefixtures("fused_adds_one")
def test_litert_of_a_function_that_ran_before():
    found = []
    for use_fused in ("auto", False):
        layer = InitStateLSTM(UNITS, initial_state=0.5, use_fused=use_fused)
        model = around(layer)
        want = model(X) - bool(use_fused)
        function = tf.function(model)
        assert_same(function(X), model(X), tolerance=1e-6)
        concrete = function.get_concrete_function(tf.TensorSpec(X.shape))
        converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        interpreter = Interpreter(model_content=converter.convert())
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], X)
        interpreter.invoke()
        got = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        assert_same(got, want, tolerance=CLOSE)
        found.append({op["op_name"] for op in interpreter._get_ops_details()})
    assert found[0] == found[1]


@pytest.mark.skipif(RELEASE < (3, 13), reason="Keras writes none before 3.13")
class TestLiteRT:
    @pytest.mark.parametrize("stateful", [False, True])
    @pytest.mark.parametrize("name", NAMES)
    def test_runs_from_the_owned_states(self, name, stateful, tmp_path):
        model, calls = model_of_every_kind(name, stateful)
        path = lite_file(model, tmp_path)
        for _ in range(2):  # Each interpreter has its own stream.
            call = on_lite(path)
            for want in calls:
                assert_same(call(X, CONTEXT), want, tolerance=CLOSE)

    @pytest.mark.parametrize("make", MAKERS)
    def test_runs_wrapped_layers(self, make, tmp_path):
        model = wrapped_layers(make)
        call = on_lite(lite_file(model, tmp_path))
        assert_same(call(X), [model(X)], tolerance=CLOSE)

    @pytest.mark.parametrize("make", MAKERS)
    def test_an_unknown_batch_size_raises(self, make, tmp_path):
        with pytest.raises(Exception, match="TensorListReserve"):
            lite_file(around(make("LSTM")), tmp_path, batch_size=None)

    @pytest.mark.parametrize("make", MAKERS)
    def test_a_file_with_an_unknown_batch_size_does_not_run(self, make, tmp_path):
        """By default, the converter may use any operation."""
        around(make("LSTM")).export(
            tmp_path / "model.tflite", format="litert", verbose=False
        )
        with pytest.raises(RuntimeError, match="FlexTensorList"):
            on_lite(tmp_path / "model.tflite")(X)

    def test_a_stream_with_an_unknown_batch_size_raises(self, tmp_path):
        """A layer of Keras takes a batch of any size, and its outputs are wrong."""
        with pytest.raises(Exception, match="EnsureShape"):
            lite_file(stateful_model(ours), tmp_path, batch_size=None)
        call = on_lite(lite_file(stateful_model(of_keras), tmp_path, batch_size=None))
        (output,) = call(X[:1])
        assert len(output) == BATCH

    @pytest.mark.parametrize("draws", ["ours", "of Keras"])
    def test_a_draw_raises(self, draws, tmp_path):
        layer = Noise()
        if draws == "ours":
            layer = InitStateLSTM(UNITS, initial_state=DRAWN)
        with pytest.raises(Exception, match="StatelessRandom"):
            lite_file(around(layer), tmp_path)


# Models with states as inputs and outputs, which read chunks.


def in_chunks(call, series, states, timesteps):
    """The joined first outputs of a runtime that keeps no states."""
    chunks = []
    for begin in range(0, series.shape[1], timesteps):
        outputs, *states = call(series[:, begin : begin + timesteps], *states)
        chunks.append(outputs)
    return np.concatenate(chunks, 1)


def lines_of_the_standard_library():
    """Indent, words and characters of the first lines of four modules."""
    series = []
    for module in (argparse, ast, bisect, calendar):
        lines = inspect.getsource(module).splitlines()[:24]
        indents = [len(line) - len(line.lstrip()) for line in lines]
        words = [len(line.split()) for line in lines]
        series.append(np.stack([indents, words, list(map(len, lines))], axis=1))
    return np.array(series, "float32") / 10


def forecaster(*sizes):
    """A model with layers of this package and of Keras, a series, and its outputs."""
    options = {"return_sequences": True, "name": "first"}
    lstm = InitStateLSTM(UNITS, initial_state="trainable", **options)
    gru = layers.GRU(UNITS, return_sequences=True, name="second")
    inner = [keras.Input(sizes), lstm, gru, layers.Dense(1)]
    model = keras.Sequential(inner)
    for index, weight in enumerate(model.weights):
        weight.assign(normal(*weight.shape, seed=index))
    series = lines_of_the_standard_library()
    reference = layers.LSTM(UNITS, return_sequences=True)
    reference.build(series.shape)
    reference.set_weights(lstm.cell.get_weights())
    h = reference(series, initial_state=tiled_states(lstm, BATCH))
    return model, series, model.layers[-1](gru(h))


def test_onnx_of_a_model_with_states_as_inputs(tmp_path):
    model, series, want = forecaster(None, FEATURES)
    stream, states = with_states_as_inputs(model, BATCH)
    stream.predict_on_batch([series, *states])  # The export needs a call.
    path = onnx_file(stream, tmp_path)
    names = [x.name for x in onnx.load(path).graph.input]
    assert names[1:] == ["first_h0", "first_c0", "second_h0"]

    call = on_onnx(path)
    for timesteps in (1, 6):
        assert_same(in_chunks(call, series, states, timesteps), want, CLOSE)


@pytest.mark.parametrize("cls", [layers.LSTM, InitStateLSTM])
def test_onnx_decodes_the_same_tokens(cls, tmp_path):
    halves = translator(lambda **kwargs: cls(UNITS, return_sequences=True, **kwargs))
    exported = []
    for half in halves:
        specs = [keras.InputSpec(shape=x.shape, dtype=x.dtype) for x in half.inputs]
        signature = specs if len(specs) == 1 else [specs]
        (tmp_path / half.name).mkdir()
        path = onnx_file(half, tmp_path / half.name, input_signature=signature)
        exported.append(on_onnx(path))
    assert_decodes_the_same_tokens(halves, exported)


@pytest.mark.skipif(RELEASE < (3, 13), reason="Keras writes none before 3.13")
def test_litert_of_a_model_with_states_as_inputs(tmp_path):
    model, series, want = forecaster(6, FEATURES)
    stream, states = with_states_as_inputs(model, BATCH)
    run = Interpreter(str(lite_file(stream, tmp_path))).get_signature_runner()
    names = list(run.get_input_details())

    def call(*inputs):
        outputs = run(**dict(zip(names, inputs, strict=True)))
        return [outputs[name] for name in sorted(outputs)]

    assert_same(in_chunks(call, series, states, 6), want, CLOSE)
