"""Files for other runtimes that `model.export()` writes on PyTorch."""

import importlib.util

import keras
import numpy as np
import pytest

from backends import BACKEND, RELEASE
from exports import (
    SOURCES,
    assert_decodes_the_same_tokens,
    on_onnx,
    on_openvino,
    translator,
)
from keras_init_lstm import (
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
)
from keras_init_lstm.streams import with_states_as_inputs
from models import BATCH, CONTEXT, FEATURES, UNITS, model_of_several_kinds, normal
from oracles import assert_same

pytestmark = [
    pytest.mark.skipif(BACKEND != "torch", reason="of PyTorch alone"),
    # PyTorch's tracers warn of each shape that Keras compares.
    pytest.mark.filterwarnings("ignore"),
]

TIMESTEPS = 3
X = normal(BATCH, TIMESTEPS, FEATURES)
SPEC = [keras.InputSpec(shape=X.shape, dtype="float32")]
# A signature for any batch size.
ROWS = [keras.InputSpec(shape=(None, *X.shape[1:]), dtype="float32")]
NEEDED = {
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "openvino": ("openvino", "scipy"),
    "torch": (),
}
ENDINGS = {"onnx": "onnx", "openvino": "xml", "torch": "pt2"}
CLOSE = 1e-5

# Keras 3.16 exports no recurrent layer with an unknown number of timesteps to ONNX.
unknown_length_in_onnx = pytest.mark.skipif(RELEASE >= (3, 16), reason="Keras raises")


def around(layer, timesteps=TIMESTEPS):
    return keras.Sequential([keras.Input((timesteps, FEATURES)), layer])


def exported(model, folder, form, **kwargs):
    """Writes a file with `model.export()`, and returns a function that runs it."""
    if not all(importlib.util.find_spec(package) for package in NEEDED[form]):
        pytest.skip(f"without {NEEDED[form]}")
    path = str(folder / f"model.{ENDINGS[form]}")
    model.export(path, format=form, verbose=False, **kwargs)
    return {"onnx": on_onnx, "openvino": on_openvino, "torch": on_torch}[form](path)


def on_torch(path):
    import torch

    program = torch.export.load(path).module()

    def call(*xs):
        tensors = list(map(torch.from_numpy, xs))
        return keras.tree.flatten(program(tensors if len(xs) > 1 else tensors[0]))

    return call


def operations(path):
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}


@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_holds_every_kind_of_state_for_any_batch_size(form, tmp_path):
    model = model_of_several_kinds(InitStateLSTM, TIMESTEPS)
    want = model([X, CONTEXT])
    call = exported(model, tmp_path, form)
    assert_same(call(X, CONTEXT), want, CLOSE)
    assert_same(call(X[:2], CONTEXT[:2]), [output[:2] for output in want], CLOSE)


def test_torch_export_holds_every_kind_of_state_for_one_batch_size(tmp_path):
    model = model_of_several_kinds(InitStateLSTM, TIMESTEPS)
    specs = [keras.InputSpec(shape=x.shape, dtype="float32") for x in (X, CONTEXT)]
    call = exported(model, tmp_path, "torch", input_signature=[specs])
    assert_same(call(X, CONTEXT), model([X, CONTEXT]), CLOSE)


def test_torch_export_has_a_batch_size_of_one_if_none_is_given(tmp_path):
    model = around(InitStateLSTM(UNITS, initial_state=0.5))
    call = exported(model, tmp_path, "torch")
    assert_same(call(X[:1]), [model(X[:1])], CLOSE)
    with pytest.raises(AssertionError, match="Guard failed"):
        call(X)


def test_onnx_needs_a_call_or_a_signature(tmp_path):
    model = around(InitStateLSTM(UNITS, initial_state=0.5))
    with pytest.raises(ValueError, match="has never called"):
        exported(model, tmp_path, "onnx")
    call = exported(model, tmp_path, "onnx", input_signature=ROWS)
    assert_same(call(X), [model(X)], CLOSE)


# An unknown number of timesteps.

NATIVE = {
    "LSTM": InitStateLSTM,
    "GRU": InitStateGRU,
    "RNN": InitStateSimpleRNN,
}


@unknown_length_in_onnx
@pytest.mark.parametrize("node", NATIVE)
def test_onnx_of_native_kernels_takes_any_length(node, tmp_path):
    model = around(NATIVE[node](UNITS, initial_state=0.5), timesteps=None)
    model(X)
    call = exported(model, tmp_path, "onnx")
    for x in (X, X[:2, :2]):
        assert_same(call(x), [model(x)], CLOSE)
    assert node in operations(tmp_path / "model.onnx")


def test_openvino_takes_a_gru_only_with_keras_loop(tmp_path):
    layer = InitStateGRU(UNITS, initial_state=0.5)
    model = around(layer)
    with pytest.raises(Exception, match="fully converted"):
        exported(model, tmp_path, "openvino")
    layer.use_fused = False
    assert_same(exported(model, tmp_path, "openvino")(X), [model(X)], CLOSE)


class Masked(keras.layers.Layer):
    """A layer that is called with a mask."""

    def __init__(self):
        super().__init__()
        self.lstm = InitStateLSTM(UNITS, initial_state=0.5)

    def call(self, x):
        return self.lstm(x, mask=x[:, :, 0] > 0)


IN_A_LOOP = {
    "use_fused=False": lambda: InitStateLSTM(UNITS, initial_state=0.5, use_fused=False),
    "mask": Masked,
    "cell": lambda: InitStateRNN(keras.layers.LSTMCell(UNITS), initial_state=0.5),
}


@unknown_length_in_onnx
@pytest.mark.parametrize("make", IN_A_LOOP)
def test_onnx_of_keras_loop_needs_the_length(make, tmp_path):
    """A trace of a Python loop is correct for one number of timesteps only."""
    model = around(IN_A_LOOP[make](), timesteps=None)
    model(X)
    with pytest.raises(ValueError, match="a known number of timesteps"):
        exported(model, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())
    if make == "use_fused=False":
        call = exported(model, tmp_path, "onnx", input_signature=ROWS)
        assert_same(call(X), [model(X)], CLOSE)


def test_openvino_of_keras_loop_needs_the_length(tmp_path):
    model = around(IN_A_LOOP["use_fused=False"](), timesteps=None)
    with pytest.raises(ValueError, match="a known number of timesteps"):
        exported(model, tmp_path, "openvino")
    call = exported(model, tmp_path, "openvino", input_signature=ROWS)
    assert_same(call(X), [model(X)], CLOSE)


@pytest.mark.skipif(RELEASE < (3, 16), reason="Keras lets it pass")
def test_keras_raises_for_an_unknown_length_in_onnx(tmp_path):
    model = around(InitStateLSTM(UNITS, initial_state=0.5), timesteps=None)
    model(X)
    with pytest.raises(ValueError, match="dynamic time dimension"):
        exported(model, tmp_path, "onnx")


@unknown_length_in_onnx
def test_keras_lstm_of_unknown_length_is_wrong_in_onnx(tmp_path):
    model = around(keras.layers.LSTM(UNITS), timesteps=None)
    model(X)
    (got,) = exported(model, tmp_path, "onnx")(X)
    assert np.abs(got - model(X).detach().numpy()).max() > 100 * CLOSE


def test_onnx_raises_for_a_draw(tmp_path):
    model = around(InitStateLSTM(UNITS, initial_state=Sampled(at_inference="sample")))
    model(X)
    with pytest.raises(ValueError, match="ONNX file can't draw an initial state"):
        exported(model, tmp_path, "onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("form", ["openvino", "torch"])
def test_pytorch_raises_for_a_draw(form, tmp_path):
    """PyTorch can't trace Keras's generator, or finds different draws."""
    model = around(InitStateLSTM(UNITS, initial_state=Sampled(at_inference="sample")))
    with pytest.raises(Exception, match="Failed to export|Graphs differed"):
        exported(model, tmp_path, form, input_signature=SPEC)


@pytest.mark.parametrize(
    ("form", "ending", "package"),
    [("tf_saved_model", "", "tensorflow"), ("litert", ".tflite", "litert_torch")],
)
def test_the_error_names_a_missing_framework(form, ending, package, tmp_path):
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    model = around(InitStateLSTM(UNITS, initial_state=0.5))
    name = package.replace("_", "-")
    with pytest.raises(ImportError, match=f"{name}"):
        model.export(tmp_path / f"model{ending}", format=form, verbose=False)


# `test_traces.py` tests exports of stateful layers.


@pytest.mark.parametrize(
    ("form", "timesteps"),
    [
        pytest.param("onnx", None, marks=unknown_length_in_onnx),
        ("onnx", 1),
        ("openvino", None),
        ("torch", 1),
    ],
)
def test_states_as_inputs(form, timesteps, tmp_path):
    lstm = InitStateLSTM(
        UNITS, initial_state="trainable", return_sequences=True, name="lstm"
    )
    dense = keras.layers.Dense(1)
    model = keras.Sequential([keras.Input((timesteps, FEATURES)), lstm, dense])
    lstm.assign_initial_state(list(normal(2, UNITS)))
    stream, states = with_states_as_inputs(model, BATCH)
    stream.predict_on_batch([X[:, :1], *states])
    specs = [(BATCH, 1, FEATURES), (BATCH, UNITS), (BATCH, UNITS)]
    specs = [keras.InputSpec(shape=shape, dtype="float32") for shape in specs]
    kwargs = {} if timesteps is None else {"input_signature": [specs]}
    call = exported(stream, tmp_path, form, **kwargs)
    lengths = [1] * TIMESTEPS if timesteps else [2, 1]
    outputs = []
    for x in np.split(X, np.cumsum(lengths)[:-1], axis=1):
        # The state outputs of one call are inputs of the next.
        output, *states = [
            np.asarray(tensor.detach() if form == "torch" else tensor)
            for tensor in call(np.ascontiguousarray(x), *states)
        ]
        outputs.append(output)
    reference = keras.layers.LSTM(UNITS, return_sequences=True)
    reference.build(X.shape)
    reference.set_weights(lstm.cell.get_weights())
    initial_state = [np.tile(row, (BATCH, 1)) for row in normal(2, UNITS)]
    want = dense(reference(X, initial_state=initial_state))
    assert_same(np.concatenate(outputs, 1), want, CLOSE)


@pytest.mark.parametrize("form", ["onnx", "torch"])
def test_decodes_the_same_tokens(form, tmp_path):
    layer = {"units": UNITS, "return_sequences": True}
    halves = translator(lambda **kwargs: InitStateLSTM(**layer, **kwargs))
    exported_halves = []
    for half in halves:
        # PyTorch's tracer needs the lengths of the sources and of a step.
        rows, length = SOURCES.shape
        shapes = [
            (rows, *(size or length for size in x.shape[1:])) for x in half.inputs
        ]
        if half is halves[1]:
            shapes[0] = (rows, 1)
        specs = [
            keras.InputSpec(shape=shape, dtype=x.dtype)
            for shape, x in zip(shapes, half.inputs, strict=True)
        ]
        (tmp_path / half.name).mkdir()
        signature = specs if len(specs) == 1 else [specs]
        folder = tmp_path / half.name
        exported_halves.append(exported(half, folder, form, input_signature=signature))
    if form == "torch":
        exported_halves = [as_arrays(call) for call in exported_halves]
    assert_decodes_the_same_tokens(halves, exported_halves)


def as_arrays(call):
    return lambda *xs: [tensor.detach().numpy() for tensor in call(*xs)]
