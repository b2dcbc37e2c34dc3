"""The benchmark runs, and its table, files and targets show what it measured."""

import contextlib
import io
import itertools
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from bench import main, parse_args, plan_of
from contenders import (
    FIT,
    INFERENCE,
    KINDS,
    LAYERS,
    OURS,
    TRAINING,
    Mode,
    Shape,
    make_run,
)
from experiments import measure
from graphs import count_traces, cudnn_ops
from plan import Plan
from report import geometric_means, targets
from timing import Run, geometric_mean, ratio, seconds, slope

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SHAPE = Shape(2, 3, 4, 5)
TINY = Plan(
    contenders=list(LAYERS),
    extra_shapes=[SHAPE],
    extra_modes=[
        Mode("inference", "eager"),
        Mode("training step", "XLA"),
        Mode("inference", return_sequences=False),
    ],
    first_shape=SHAPE,
    first_repetitions=1,
    traced_shapes=6,
    memory_contenders=["LSTM"],
    memory_shape=SHAPE,
    growth_shape=SHAPE,
    growth={"time": [2, 4]},
    min_seconds=1e-9,
    fit_seconds=1e-9,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a tiny grid without torch: its results, PNG file and output."""
    output = tmp_path_factory.mktemp("bench") / "new" / "picture.png"
    arguments = ["--shapes", "2x3x4x5", "--rounds", "2", "--output", str(output)]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        results = main(arguments, TINY)
    return results, output, printed.getvalue()


def test_files(run):
    results, output, printed = run

    assert output.read_bytes().startswith(b"\x89PNG")
    written = json.loads(output.with_suffix(".json").read_text())
    assert written == json.loads(json.dumps(results))
    assert str(output) in printed
    assert written["command"].endswith(f"--shapes 2x3x4x5 --rounds 2 --output {output}")
    assert written["machine"]["keras"] == keras.__version__


def test_cases(run):
    results, *_ = run

    assert [case["mode"] for case in results["cases"]] == [
        "inference",
        "training step",
        "fit",
        "inference, eager",
        "training step, XLA",
        "inference, last output",
    ]
    for case in results["cases"]:
        expected = {"LSTM", "explicit state", "trainable"}
        if case["mode"] in ("inference", "training step"):
            expected |= {"LSTM again", "fixed", "sampled"}
        assert expected <= set(case["seconds"])
        assert case["shape"] == list(SHAPE)
        for times in case["seconds"].values():
            assert len(times) == case["rounds"] == 2
            assert min(times) > 0


def test_ratios_are_those_of_the_rounds(run):
    results, *_ = run

    for case in results["cases"]:
        times = {name: np.array(t) for name, t in case["seconds"].items()}
        expected = {
            "LSTM / ...": {n: times["LSTM"] / times[n] for n in times if n != "LSTM"},
            "... / explicit": {
                n: times[n] / times["explicit state"]
                for n in times
                if n not in ("LSTM", "LSTM again", "explicit state")
            },
        }
        assert case["ratios"].keys() == expected.keys()
        for kind, by_name in expected.items():
            assert case["ratios"][kind].keys() == by_name.keys()
            for name, ratios in by_name.items():
                found = case["ratios"][kind][name]
                assert found["median"] == pytest.approx(ratios.mean())  # of two
                low, high = sorted(ratios)
                assert found["low"] == pytest.approx(low + 0.1 * (high - low))
                assert found["high"] == pytest.approx(high - 0.1 * (high - low))
                assert found["tie"] == (found["low"] <= 1 <= found["high"])
        assert case["median_ms"]["LSTM"] == pytest.approx(1e3 * times["LSTM"].mean())


def test_table_shows_the_ratios(run):
    results, _, printed = run

    for case in results["cases"]:
        section = printed.split(f"== {case['mode']}\n")[1].split("\n\n")[0]
        lines = section.splitlines()
        assert [line.split()[1] for line in lines[:4]] == list(map(str, SHAPE))
        speedups = section.split("LSTM / ...")[1].split("... / explicit")[0]
        for name, speedup in case["ratios"]["LSTM / ..."].items():
            (text,) = (
                t for t in speedups.splitlines() if t[:20].rstrip() == f"  {name}"
            )
            mark = "=" if speedup["tie"] else ""
            # Of a single shape, the geometric mean is its own ratio.
            expected = [f"{speedup['median']:.2f}{mark}", f"{speedup['median']:.2f}"]
            assert text.split()[-2:] == expected
    assert printed.split("cuDNN ops")[1].count("none") == len(
        results["cases"][0]["seconds"]
    )


def test_targets_are_judged():
    def case(mode, ours):
        ratios = {
            name: {"median": ours if name in ("auto", "fused") else 1.0}
            for name in OURS
        }
        return {
            "mode": mode,
            "ratios": {"LSTM / ...": ratios, "... / explicit": ratios},
        }

    def traces(ours):
        counts = {name: {} for name in ("LSTM", *KINDS, "auto")}
        for name, by_way in counts.items():
            for way in ("reduce_retracing", "input_signature"):
                by_way[way] = (ours if name == "auto" else 2, 0.0)
        return counts

    def judged(fits, inference, ours):
        cases = [case("fit", fit) for fit in fits]
        cases += [case("inference", inference), case("training step", 1.0)]
        found = targets(cases, geometric_means(cases), traces(ours))
        return {t["what"]: (pytest.approx(t["figure"]), t["reached"]) for t in found}

    good, bad = judged([1.0, 4.0], 1.5, 2), judged([0.9, 4.0], 1.2, 3)
    assert good["LSTM / auto, fit"] == (2.0, True)
    assert bad["LSTM / auto, fit"] == (3.6**0.5, False)
    assert good["LSTM / auto, fit, slowest shape"] == (1.0, True)
    assert bad["LSTM / auto, fit, slowest shape"] == (0.9, False)
    assert good["LSTM / fused, inference"] == (1.5, True)
    assert bad["LSTM / fused, inference"] == (1.2, False)
    assert good["traces, input_signature"] == (2, True)
    assert bad["traces, input_signature"] == (3, False)


def test_spread_that_crosses_one_is_a_tie():
    ones = np.ones(11)
    ratios = np.linspace(0.98, 1.02, 11)

    assert ratio(ratios, ones)["tie"]
    assert ratio(ones, ratios)["tie"]
    # A tenth of the rounds on the other side of 1 is an outlier.
    faster = np.r_[0.5, np.linspace(1.1, 1.2, 10)]
    assert ratio(faster, ones) == {
        "median": pytest.approx(np.median(faster)),
        "low": pytest.approx(1.1),
        "high": pytest.approx(np.sort(faster)[-2]),
        "tie": False,
    }
    assert not ratio(ones, faster)["tie"]
    # Of a machine that drifts, only what differs within the rounds counts.
    drift = np.geomspace(1, 10, 11)
    assert ratio(1.1 * drift, drift)["low"] == pytest.approx(1.1)


def test_slope():
    sizes = np.array([8, 16, 64, 128])

    assert slope(sizes, 3e-3 * sizes**1.7) == pytest.approx(1.7)
    assert slope(sizes, np.full(4, 5.0)) == pytest.approx(0)
    assert geometric_mean([0.5, 2, 8]) == pytest.approx(2)


def cudnn_rnn(x):
    # To trace it needs no GPU; to run it would.
    return tf.raw_ops.CudnnRNNV3(
        input=x,
        input_h=tf.zeros((1, 2, 4)),
        input_c=tf.zeros((1, 2, 4)),
        params=tf.zeros((200,)),
        sequence_lengths=tf.fill([2], 3),
        rnn_mode="lstm",
    ).output


def in_function(x):
    return tf.function(cudnn_rnn)(x)


def in_branch(x):
    return tf.cond(tf.reduce_any(x > 0), lambda: in_function(x), lambda: x)


def in_loop(x):
    return tf.while_loop(lambda x: tf.reduce_any(x > 0), lambda x: (in_branch(x),), [x])


@pytest.mark.parametrize("function", [cudnn_rnn, in_function, in_branch, in_loop])
def test_cudnn_op_is_found(function):
    spec = tf.TensorSpec((3, 2, 4))
    concrete = tf.function(function).get_concrete_function(spec)

    assert cudnn_ops(concrete) == ["CudnnRNNV3"]


def test_cudnn_op_that_is_never_called_is_not_found():
    spec = tf.TensorSpec((3, 2, 4))
    never_called = tf.function(cudnn_rnn).get_concrete_function(spec)

    @tf.function
    def function(x):
        never_called.add_to_graph()
        return x + 1

    concrete = function.get_concrete_function(spec)
    assert "CudnnRNNV3" in str(concrete.graph.as_graph_def())
    assert cudnn_ops(concrete) == []


def test_cudnn_op_of_keras(monkeypatch):
    def ops_of(name, action="training step"):
        return cudnn_ops(make_run(name, SHAPE, Mode(action)).graph())

    assert ops_of("LSTM") == []
    # What Keras traces where it finds a GPU.
    monkeypatch.setattr("tensorflow.config.list_logical_devices", lambda _: ["GPU"])
    monkeypatch.setattr("keras_init_lstm.fused.available", lambda: False)  # cached
    for name in ("LSTM", "explicit state", "trainable"):
        assert ops_of(name) == ["CudnnRNNBackpropV3", "CudnnRNNV3"]
        assert ops_of(name, "inference") == ["CudnnRNNV3"]


def test_traces_are_counted():
    shapes = [(n, 2 + n % 3, 4) for n in range(1, 7)]
    any_shape = [tf.TensorSpec((None, None, 4))]
    built, unbuilt = (keras.layers.LSTM(3) for _ in range(2))
    built.build((None, None, 4))

    assert count_traces(built, shapes, input_signature=any_shape)[0] == 1
    # A layer that creates variables in a call is traced twice.
    assert count_traces(unbuilt, shapes, input_signature=any_shape)[0] == 2
    assert count_traces(built, shapes, reduce_retracing=False)[0] == len(shapes)
    assert 1 < count_traces(built, shapes, reduce_retracing=True)[0] < len(shapes)


def test_trace_counts_of_the_layers(run):
    results, *_ = run

    assert list(results["traces"]) == [
        "LSTM",
        "explicit state",
        "fixed",
        "sampled",
        "trainable",
        "auto",
    ]
    for counts in results["traces"].values():
        assert counts["input_signature"][0] == 1
        assert (
            counts["reduce_retracing"][0]
            == (results["traces"]["LSTM"]["reduce_retracing"][0])
        )


def test_explicit_state_is_what_the_library_computes():
    x = np.random.default_rng(0).normal(size=(2, 3, 4)).astype("float32")
    layers = [LAYERS[name](5) for name in ("explicit state", "trainable")]
    for layer in layers:
        layer.build(x.shape)
        for name in ("recurrent_kernel", "kernel", "bias"):
            # Not in one order: the one has its states first, the other last.
            (weight,) = (w for w in layer.weights if w.path.endswith(f"/{name}"))
            rng = np.random.default_rng(weight.shape[0])
            weight.assign(rng.normal(size=weight.shape))
    explicit, ours = layers
    explicit.h0.assign(np.arange(5.0))
    explicit.c0.assign(-np.arange(5.0))
    ours.assign_initial_state([np.arange(5.0), -np.arange(5.0)])

    np.testing.assert_allclose(explicit(x), ours(x), atol=1e-6)


def test_torch_has_a_column_if_it_is_there(run):
    pytest.importorskip("torch")
    rows = run[0]["cases"][0]["seconds"]
    assert not any("torch" in name for name in rows)
    assert not any("torch" in t["what"] for t in run[0]["targets"])

    for mode, name in ((TRAINING, "torch"), (FIT, "torch loop")):
        assert Plan().names(mode)[-1] == name
        case = measure(SHAPE, mode, ["LSTM", "auto", name], 2)
        times = {n: np.array(t) for n, t in case["seconds"].items()}
        assert case["ratios"]["torch / ..."]["auto"]["median"] == pytest.approx(
            (times[name] / times["auto"]).mean()
        )
        assert name in case["ratios"]["LSTM / ..."]


def test_of_fit_the_steps_are_timed(monkeypatch):
    # Before and, on some calls of tf.data, after all that Keras does.
    fit = keras.Sequential.fit

    def wait_and_fit_and_wait(*args, **kwargs):
        time.sleep(0.5)
        fit(*args, **kwargs)
        time.sleep(0.5)

    monkeypatch.setattr(keras.Sequential, "fit", wait_and_fit_and_wait)
    run = make_run("trainable", SHAPE, FIT)
    run.do()

    assert 0 < seconds(run) < 0.4

    clock = itertools.count()  # Each step takes a second.
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert seconds(run, calls=2) == 2


def test_contenders_take_turns_in_fewer_rounds_if_slow(monkeypatch):
    # A round of two calls of 0.6 s is over a second.
    clock = iter(np.arange(0, 1e6, 0.6))
    log = []
    monkeypatch.setattr(
        "experiments.make_run",
        lambda name, *_: Run(lambda: log.append(name), clock=lambda: next(clock)),
    )
    names = ["LSTM", "trainable"]

    case = measure(SHAPE, FIT, names, 15, steps=2)

    assert case["rounds"] == 5
    assert case["seconds"] == {name: pytest.approx([0.3] * 5) for name in names}
    rounds = [tuple(log[i : i + 2]) for i in range(4, len(log), 2)]  # after warm-up
    assert len(rounds) == 5
    assert set(rounds) == {("LSTM", "trainable"), ("trainable", "LSTM")}


def test_peak_memory(run, capsys):
    # In a process of its own, as in the benchmark: the peak of this one may lie above
    # what it holds now, from the tests before.
    script = (
        "import memory, numpy; before = memory.peak_bytes(); "
        "block = numpy.ones(2**27, 'uint8'); "
        "assert memory.peak_bytes() - before > 0.9 * block.size"
    )
    subprocess.run([sys.executable, "-c", script], cwd=BENCHMARKS, check=True)

    main(["--peak-memory", "LSTM", "--shapes", "2x3x4x5"])
    results, *_ = run
    assert results["peak_memory"].keys() == {"LSTM"}
    for mib in (float(capsys.readouterr().out), results["peak_memory"]["LSTM"]):
        assert -1 < mib < 500  # The kernel counts roughly.


def test_arguments_change_the_plan(tmp_path):
    def plan(*arguments):
        return plan_of(parse_args([*arguments, "--output", str(tmp_path)]), TINY)

    assert plan() == TINY
    assert plan("--rounds", "3", "--seed", "4", "--device", "cpu") == replace(
        TINY, rounds=3, seed=4, device="cpu"
    )
    quick = plan("--quick", "--shapes", "2x3x4x5")
    assert quick == replace(TINY.quick(), shapes=[SHAPE])
    assert list(map(str, quick.modes(SHAPE))) == ["inference", "training step", "fit"]
    few = ["LSTM", "explicit state", "trainable", "auto"]
    assert quick.names(TRAINING) == quick.names(FIT) == few
    assert quick.names(INFERENCE) == [*few, "fused"]
    assert quick.memory_names() == [] and not quick.growth


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: expected an integer >= 1, got '0'"),
        (["--shapes", "2x3x4"], "argument --shapes: expected BxTxFxU, got '2x3x4'"),
        (["--shapes", "2x3x4x0"], "expected an integer >= 1, got '0'"),
        (["--output", "picture.jpg"], "must end in .png"),
        (["--device", "gpu"], "TensorFlow finds no GPU"),
    ],
)
def test_refused_arguments(arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tensorflow.config.list_physical_devices", lambda *_: [])

    with pytest.raises(SystemExit):
        parse_args(arguments)  # not `main`: accepted, it would take minutes

    assert message in capsys.readouterr().err
