"""Functions that run exported files on arrays."""

import pathlib
import re

import keras
import numpy as np
import pytest

from keras_init_lstm.streams import as_encoder_and_decoder

HOW_TO = pathlib.Path(__file__).parent.parent / "docs" / "how-to"


def on_onnx(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda *xs: session.run(None, dict(zip(names, xs, strict=True)))


def on_openvino(path):
    # Otherwise OpenVINO computes in bfloat16 where the CPU can.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = pytest.importorskip("openvino").compile_model(path, "CPU", exact)
    return lambda *xs: list(compiled(xs).values())


# A sequence-to-sequence model, decoded as in the document.

VOCABULARY, BEGIN = 9, 1
SOURCES = np.array([[5, 8, 4, 0, 0], [7, 3, 3, 8, 6]], "int32")


def decode():
    """The function of the document."""
    text = (HOW_TO / "sequence-to-sequence.md").read_text()
    code = re.search(r"^def decode\(.*?^$", text, re.MULTILINE | re.DOTALL)
    scope = {"np": np, "BEGIN": BEGIN}
    exec(code[0], scope)
    return scope["decode"]


def translator(make):
    """A trained encoder-decoder with attention, as its two models.

    Args:
        make: Function that makes a recurrent layer from `return_state`.
    """
    layers = keras.layers
    source, target = (keras.Input((None,), dtype="int32") for _ in range(2))
    embedding = layers.Embedding(VOCABULARY, 4, mask_zero=True)
    encoded, *states = make(return_state=True)(embedding(source))
    decoded = make(return_state=False)(embedding(target), initial_state=states)
    attended = layers.Attention()([decoded, encoded])
    logits = layers.Dense(VOCABULARY)(layers.Concatenate()([decoded, attended]))
    model = keras.Model([source, target], logits)
    # With these weights, the tokens differ between timesteps and rows.
    rng = np.random.default_rng(1)
    model.set_weights([rng.normal(0, 2, w.shape) for w in model.get_weights()])
    return as_encoder_and_decoder(model)


def assert_decodes_the_same_tokens(halves, exported):
    """Asserts the tokens of Keras and of a runtime, greedy and sampled.

    Args:
        halves: The encoder and the decoder.
        exported: A function of arrays for each of them, which runs its file.
    """
    encode, step = exported
    for temperature in (0.0, 2.0):
        found = []
        for functions in (
            [half.predict_on_batch for half in halves],
            [encode, lambda inputs: step(*inputs)],
        ):
            np.random.seed(0)
            found.append(decode()(*functions, SOURCES, 8, temperature))
        assert (found[0] == found[1]).all()
        assert all(len(np.unique(row)) > 1 for row in found[0])
        assert (found[0][0] != found[0][1]).any()
