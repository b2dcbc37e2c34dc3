import importlib.util
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import hypothesis
import keras
import pytest

from distributions import build

# The packages that the tests in a file import.
NEEDED = {
    "loops/test_cudnn.py": ("tensorflow",),
    "benchmarks/test_backends.py": ("matplotlib",),
    "benchmarks/test_demo.py": ("matplotlib", "scipy", "sklearn", "tqdm"),
    "benchmarks/test_evidence.py": (
        "aeon",
        "bokeh_sampledata",
        "matplotlib",
        "river",
        "tensorflow",
    ),
    "integration/test_export.py": (
        "ai_edge_litert",
        "onnxruntime",
        "tensorflow",
        "tf2onnx",
    ),
    "loops/test_derivatives.py": ("tensorflow",),
    "loops/test_sizes.py": ("tensorflow",),
    "integration/test_hammered.py": ("tensorflow",),
    "keras2/test_keras2.py": ("tensorflow", "tf_keras"),
    "test_plots.py": ("matplotlib",),
    "benchmarks/test_sequences.py": ("tensorflow",),
    "callbacks/test_log.py": ("tensorflow",),
    "benchmarks/test_speed.py": ("matplotlib", "tensorflow"),
    "benchmarks/test_text.py": ("matplotlib", "tensorflow"),
    "test_typing.py": ("mypy", "pyright"),
}
collect_ignore = [
    name
    for name, packages in NEEDED.items()
    if not all(importlib.util.find_spec(package) for package in packages)
]

hypothesis.settings.register_profile(
    "default",
    deadline=None,
    # Use the same examples at every run: a test then fails only because of a change.
    derandomize=True,
    max_examples=40,
    suppress_health_check=list(hypothesis.HealthCheck),
)
# `HYPOTHESIS_PROFILE=search pytest` looks for new counterexamples.
hypothesis.settings.register_profile(
    "search",
    parent=hypothesis.settings.get_profile("default"),
    derandomize=False,
    max_examples=500,
)
# For JAX and PyTorch, on which the examples take longer.
hypothesis.settings.register_profile(
    "backends",
    parent=hypothesis.settings.get_profile("default"),
    max_examples=5,
)
# For mutation testing, which needs only a failure, and no minimal example.
hypothesis.settings.register_profile(
    "mutants",
    parent=hypothesis.settings.get_profile("default"),
    phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    max_examples=15,
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_collection_modifyitems(items):
    if keras.backend.backend() == "tensorflow":
        return
    for item in items:
        if item.get_closest_marker("tensorflow"):
            item.add_marker(pytest.mark.skip(reason="of TensorFlow alone"))


@pytest.fixture(autouse=True)
def seed():
    keras.utils.set_random_seed(20260101)


@pytest.fixture(autouse=True)
def room_for_sizes():
    """Resets the limit of compiled sizes, which all tests together would exceed."""
    if keras.backend.backend() == "tensorflow":
        from keras_init_lstm.loops import tensorflow_loop

        tensorflow_loop._sizes.clear()


@pytest.fixture(scope="session")
def distributions(tmp_path_factory):
    """The paths of the source distribution and the wheel of this checkout."""
    return build(tmp_path_factory.mktemp("distributions"))


@pytest.fixture
def fused_adds_one(monkeypatch):
    """Adds one to the results of the fused loop, to see whether it runs.

    A record of the calls is not enough: a graph may hold one loop and run another.
    """
    from keras_init_lstm.loops import tensorflow as fused

    def run_loop(*args):
        return [output + 1 for output in real(*args)]

    real = fused.run_loop
    monkeypatch.setattr(fused, "run_loop", run_loop)


@pytest.fixture
def taken(monkeypatch):
    """A list of the calls of the fused loop, or of its traces in a graph."""
    from keras_init_lstm.loops import _loop as loop

    def run(call):
        calls.append(call)
        return real(call)

    real, calls = loop.run, []
    monkeypatch.setattr(loop, "run", run)
    return calls
