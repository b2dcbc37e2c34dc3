"""Files for other runtimes that `model.export()` writes on JAX.

A test that needs another package runs if it is installed. `make` does not install them:
`jax2onnx` needs 45 other packages, and TensorFlow is a backend.
"""

import importlib.util

import keras
import numpy as np
import pytest

from backends import BACKEND
from exports import assert_decodes_the_same_tokens, on_onnx, translator
from keras_init_lstm import InitStateGRU, InitStateLSTM, Sampled
from keras_init_lstm.streams import with_states_as_inputs
from models import BATCH, CONTEXT, FEATURES, UNITS, model_of_several_kinds, normal
from oracles import assert_same

pytestmark = pytest.mark.skipif(BACKEND != "jax", reason="of JAX alone")

X = normal(BATCH, 3, FEATURES)
ROWS = [keras.InputSpec(shape=(None, *X.shape[1:]), dtype="float32")]
SIGNED = [keras.InputSpec(shape=X.shape, dtype="float32")]
CLOSE = 1e-5


def needs(*packages):
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    return pytest.mark.skipif(bool(missing), reason=f"without {missing}")


needs_onnx = needs("jax2onnx", "onnxruntime")
needs_tensorflow = needs("tensorflow")


def around(layer, timesteps=None, batch_size=None):
    return keras.Sequential([keras.Input((timesteps, FEATURES), batch_size), layer])


def onnx_file(model, folder, **kwargs):
    path = folder / "model.onnx"
    model.export(path, format="onnx", verbose=False, **kwargs)
    return on_onnx(path)


def saved_model(model, folder, **kwargs):
    import tensorflow as tf

    path = str(folder / "model")
    model.export(path, verbose=False, **kwargs)
    loaded = tf.saved_model.load(path)

    def call(*xs):
        outputs = loaded.serve(list(xs) if len(xs) > 1 else xs[0])
        return [output.numpy() for output in keras.tree.flatten(outputs)]

    return call


EXPORTS = [
    pytest.param(onnx_file, marks=needs_onnx),
    pytest.param(saved_model, marks=needs_tensorflow),
]


@pytest.mark.parametrize("write", EXPORTS)
def test_holds_every_kind_of_state_for_any_size(write, tmp_path):
    model = model_of_several_kinds(InitStateGRU)
    model([X, CONTEXT])
    call = write(model, tmp_path)
    for x, context in ((X, CONTEXT), (X[:2, :2], CONTEXT[:2])):
        assert_same(call(x, context), model([x, context]), CLOSE)


@pytest.mark.parametrize("write", EXPORTS)
def test_states_as_inputs(write, tmp_path):
    lstm = InitStateLSTM(UNITS, initial_state=0.5, return_sequences=True)
    model = around(lstm)
    want = model(X)
    stream, states = with_states_as_inputs(model, BATCH)
    stream([X, *states])  # The export needs a call. A call of `predict()` is no call.
    call = write(stream, tmp_path)
    outputs = []
    for x in (X[:, :2], X[:, 2:]):
        output, *states = call(x, *states)
        outputs.append(output)
    assert_same(np.concatenate(outputs, 1), want, CLOSE)


@pytest.mark.parametrize("write", EXPORTS)
def test_decodes_the_same_tokens(write, tmp_path):
    layer = {"units": UNITS, "return_sequences": True}
    halves = translator(lambda **kwargs: InitStateLSTM(**layer, **kwargs))
    exported = []
    for half in halves:
        specs = [keras.InputSpec(shape=x.shape, dtype=x.dtype) for x in half.inputs]
        signature = specs if len(specs) == 1 else [specs]
        (tmp_path / half.name).mkdir()
        exported.append(write(half, tmp_path / half.name, input_signature=signature))
    assert_decodes_the_same_tokens(halves, exported)


@needs_tensorflow
def test_a_saved_model_carries_a_stream(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=0.5, stateful=True)
    model = around(layer, batch_size=BATCH)
    want = [model(X), model(X)]
    layer.reset_states()
    call = saved_model(model, tmp_path, input_signature=SIGNED)
    assert_same([call(X)[0], call(X)[0]], want, CLOSE)
    assert_same(model(X), want[0], CLOSE)


@needs_tensorflow
def test_a_saved_model_draws_if_the_layer_does(tmp_path):
    layer = InitStateLSTM(UNITS, initial_state=Sampled(at_inference="sample"))
    call = saved_model(around(layer), tmp_path)
    assert (call(X)[0] != call(X)[0]).all()


@needs_onnx
def test_onnx_raises_for_a_draw(tmp_path):
    model = around(InitStateLSTM(UNITS, initial_state=Sampled(at_inference="sample")))
    with pytest.raises(ValueError, match="ONNX file can't draw an initial state"):
        onnx_file(model, tmp_path, input_signature=ROWS)
    assert not list(tmp_path.iterdir())


@needs_onnx
def test_jax2onnx_does_not_read_backwards(tmp_path):
    for layer in (keras.layers.LSTM(UNITS), InitStateLSTM(UNITS, initial_state=0.5)):
        model = around(keras.layers.Bidirectional(layer))
        with pytest.raises(NotImplementedError, match="Reverse scan"):
            onnx_file(model, tmp_path, input_signature=ROWS)


@pytest.mark.skipif(
    bool(importlib.util.find_spec("jax2onnx")), reason="jax2onnx is installed"
)
def test_onnx_needs_a_package(tmp_path):
    with pytest.raises(ImportError, match="jax2onnx"):
        around(InitStateLSTM(UNITS)).export(
            tmp_path / "model.onnx", format="onnx", input_signature=ROWS
        )


def test_onnx_needs_a_call_other_than_predict(tmp_path):
    for layer in (keras.layers.LSTM(UNITS), InitStateLSTM(UNITS)):
        model = around(layer)
        model.predict(X, verbose=0)
        with pytest.raises(ValueError, match="has never called"):
            model.export(tmp_path / "model.onnx", format="onnx")


@needs("openvino", "tensorflow")
def test_openvino_does_not_support_jax(tmp_path):
    for layer in (keras.layers.Dense(UNITS), InitStateLSTM(UNITS)):
        model = around(layer, timesteps=3)
        with pytest.raises(Exception, match="No conversion rule.*XlaCallModule"):
            model.export(str(tmp_path / "m.xml"), format="openvino", verbose=False)


@pytest.mark.skipif(
    bool(importlib.util.find_spec("tensorflow")), reason="TensorFlow is installed"
)
def test_a_saved_model_needs_tensorflow(tmp_path):
    with pytest.raises(ImportError, match="requires the tensorflow module"):
        around(InitStateLSTM(UNITS)).export(tmp_path / "model")


@pytest.mark.parametrize(
    ("form", "path", "message"),
    [
        ("litert", "m.tflite", "requires TensorFlow or PyTorch backend"),
        ("torch", "m.pt2", "requires PyTorch backend"),
    ],
)
def test_other_formats_raise(form, path, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        around(InitStateLSTM(UNITS)).export(tmp_path / path, format=form)
