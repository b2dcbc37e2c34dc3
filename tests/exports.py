"""Functions that run exported files on arrays."""

import pytest


def on_onnx(path):
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    names = [tensor.name for tensor in session.get_inputs()]
    return lambda *xs: session.run(None, dict(zip(names, xs, strict=True)))


def on_openvino(path):
    # Otherwise OpenVINO computes in bfloat16 where the CPU can.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = pytest.importorskip("openvino").compile_model(path, "CPU", exact)
    return lambda *xs: list(compiled(xs).values())
