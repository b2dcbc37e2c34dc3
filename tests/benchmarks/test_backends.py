"""The benchmark of the backends runs, and its files show the results."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from benchmarks.speed.backends.__main__ import main
from benchmarks.speed.backends.cases import BACKEND, CASES, Case, draw_masks, measure
from benchmarks.speed.backends.report import (
    in_words,
    memory,
    report,
    rows,
    summary,
)
from benchmarks.speed.contenders import INFERENCE, Shape

ROOT = Path(__file__).parents[2]
NAME = keras.backend.backend()
# The fused loop of TensorFlow needs 8 timesteps.
SHAPE = Shape(2, 9, 3, 4)
FAST = {"min_seconds": 1e-9, "fit_seconds": 1e-9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The results of a run of LSTMs at a tiny shape, and its PNG file."""
    output = tmp_path_factory.mktemp("bench") / "new" / "backends.png"
    arguments = ["--shapes", "2x9x3x4", "--cells", "LSTM", "--rounds", "2"]
    return main([*arguments, "--output", str(output)], **FAST), output


def test_files(run):
    results, output = run

    assert output.read_bytes().startswith(b"\x89PNG")
    assert json.loads(output.with_suffix(".json").read_text()) == results
    assert output.with_suffix(".md").read_text() == report(results)


def test_cases(run):
    (result,) = run[0].values()

    expected = [case for case in CASES if case.cell == "LSTM"]
    assert [case["case"] for case in result["cases"]] == list(map(str, expected))
    for case in result["cases"]:
        times = case["seconds"]
        assert {"Keras", "auto"} <= set(times) <= {"Keras", "auto", "native"}
        for other, ratio in case["ratios"].items():
            ratios = np.divide(times[other], times["auto"])
            np.testing.assert_allclose(ratio["median"], np.median(ratios), rtol=1e-2)
            assert len(times[other]) == 2 and min(times[other]) > 0


def test_kernels_come_from_the_run(run):
    (result,) = run[0].values()
    ours, keras_, native = {
        "tensorflow": (["XLA"], ["While"], ["BlockLSTMV2"]),
        "torch": (["lstm", "mkldnn_rnn_layer"], [], ["lstm", "mkldnn_rnn_layer"]),
        "jax": ([], ["while"], None),
    }[NAME]

    for case in result["cases"][:2]:  # inference and training
        kernels = case["kernels"]
        assert set(ours) <= set(kernels["auto"])
        assert set(keras_) <= set(kernels["Keras"])
        assert not set(ours) & set(kernels["Keras"])
        assert set(native or ()) <= set(kernels.get("native", ()))
        assert ("native" in kernels) == (native is not None)


@pytest.mark.skipif(NAME != "torch", reason="only PyTorch counts it")
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_training_takes_no_more_memory_than_the_native_layer_and_its_weights(cell):
    shape = Shape(32, 8, 16, 32)
    case = measure(Case(cell, "training step"), shape, 1, **FAST)

    found = case["peak_bytes"]
    weights = {"LSTM": 4, "GRU": 3}[cell] * shape.units * (shape.features + shape.units)
    assert found["native"] <= found["auto"] <= found["native"] + 4 * weights + 2**12
    outputs = 4 * shape.batch * shape.time * shape.units
    assert found["native"] > 3 * outputs
    (*_, row) = memory([case])
    assert row.startswith(f"| {cell}, training step | 32x8x16x32 | ")
    assert f"| {found['auto'] / 1e6:.3g} | {found['Keras'] / 1e6:.3g} |" in row


def test_other_backends_stay_in_the_files(run, tmp_path):
    results, _ = run
    (result,) = results.values()
    output = tmp_path / "backends.png"
    other = {"another": {**result, "machine": {**result["machine"], "another": "1.0"}}}
    output.with_suffix(".json").write_text(json.dumps(other))

    arguments = ["--shapes", "2x9x3x4", "--cells", "SimpleRNN", "--rounds", "1"]
    again = main([*arguments, "--output", str(output)], **FAST)

    assert set(again) == {"another", NAME}
    assert again["another"] == other["another"]
    document = output.with_suffix(".md").read_text()
    assert "## another\n" in document and f"## {NAME}\n" in document


def test_the_readme_has_the_committed_results():
    results = json.loads((ROOT / "benchmarks/results/backends.json").read_text())
    readme = (ROOT / "README.md").read_text()

    assert f"\n\n{summary(results)}\n" in readme
    on_torch = rows(results["torch"]["cases"])
    for cell in ("LSTM", "GRU"):
        mean = in_words(on_torch[f"{cell}, fit"]["ratios"]["native"])
        mean, _, spread = mean.replace("**", "").partition(" (")
        assert f"{mean} ({cell}, {spread}" in readme
    document = (ROOT / "benchmarks/results/backends.md").read_text()
    assert document == report(results)


def test_the_table_has_means_and_ranges_over_the_shapes():
    cases = [
        {
            "case": "LSTM, inference",
            "ratios": {"Keras": {"median": median}},
            "kernels": {"auto": ["a"], "Keras": ["b"]},
        }
        for median in (1.0, 4.0)
    ]

    found = rows(cases)

    assert found == {
        "LSTM, inference": {"ratios": {"Keras": [1.0, 4.0]}, "kernels": ["a"]}
    }
    assert in_words([1.0, 4.0]) == "**2.00** (1.00 to 4.00)"
    assert in_words(None) == ""


@pytest.mark.parametrize("masks", ["mask", "reset_mask"])
def test_only_layers_that_support_a_mask_get_it(masks, monkeypatch):
    given = []
    make_run = BACKEND.make_run

    def note(layer, action, x, **masks):
        given.append((type(layer).__name__, sorted(masks)))
        return make_run(layer, action, x, **masks)

    monkeypatch.setattr(BACKEND, "make_run", note)
    measure(Case("GRU", "inference", masks), SHAPE, 1, **FAST)

    of_keras = [] if masks == "reset_mask" else ["mask"]
    assert given[:2] == [("GRU", of_keras), ("InitStateGRU", [masks])]
    drawn = draw_masks(Shape(100, 100, 1, 1), masks)[masks]
    assert np.mean(drawn) == pytest.approx({"mask": 0.75}.get(masks, 1 / 16), abs=0.01)


@pytest.mark.tensorflow
def test_the_native_layer_of_tensorflow_is_an_lstm():
    x = np.random.default_rng(0).normal(size=SHAPE[:3]).astype("float32")
    native = BACKEND.BlockLSTM(SHAPE.units)
    native.build(x.shape)
    for state in (native.h0, native.c0):
        state.assign(np.random.default_rng(1).normal(size=SHAPE.units))
    lstm = keras.layers.LSTM(SHAPE.units, return_sequences=True)
    lstm.build(x.shape)
    kernel, bias = native.kernel.numpy(), native.bias.numpy()
    lstm.set_weights([kernel[: SHAPE.features], kernel[SHAPE.features :], bias])
    states = [np.tile(s.numpy(), (SHAPE.batch, 1)) for s in (native.h0, native.c0)]

    expected = lstm(x, initial_state=states)

    np.testing.assert_allclose(native(x), expected, rtol=1e-5, atol=1e-6)
    mode = INFERENCE._replace(cell="GRU")
    assert BACKEND.native_run(SHAPE, mode, x, None) is None


def test_invalid_arguments(capsys):
    with pytest.raises(SystemExit):
        main(["--shapes", "2x3"])
    assert "expected BxTxFxU, got '2x3'" in capsys.readouterr().err
