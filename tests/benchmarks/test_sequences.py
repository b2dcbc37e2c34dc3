"""The benchmark of sequences and streams."""

import ast
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import sequences
from benchmarks.speed.contenders import INFERENCE
from keras_init_lstm.streams import pack
from oracles import assert_same, to_numpy

pytestmark = pytest.mark.tensorflow


def test_lengths_of_functions_of_the_standard_library():
    lengths = sequences.lengths_of_functions(1200)
    text = (Path(sysconfig.get_paths()["stdlib"]) / "bisect.py").read_text()
    of_bisect = [
        len(ast.get_source_segment(text, node).splitlines())
        for node in ast.parse(text).body
        if isinstance(node, ast.FunctionDef)
    ]
    joined = ",".join(map(str, lengths))
    assert len(of_bisect) == 4 and ",".join(map(str, of_bisect)) in joined
    assert min(lengths) >= 1 and max(lengths) <= sequences.ROW
    assert len(lengths) == 1200


def test_runs_have_equal_results_and_their_times_are_in_the_table(monkeypatch):
    outputs = {}

    def take_turns(runs, rounds):
        for name, run in runs.items():
            outputs[name] = run.do()
        return 1, {name: [k + 1.0] * rounds for k, name in enumerate(runs)}

    monkeypatch.setattr(sequences, "take_turns", take_turns)
    runs, filled = sequences.short_sequences(7, INFERENCE)
    case = sequences.measure(runs, 3)
    alone = np.concatenate([to_numpy(one)[0] for one in outputs[sequences.ALONE]])
    lengths = sequences.lengths_of_functions(7)
    padded = to_numpy(outputs[sequences.PADDED])
    rows = [row[:length] for row, length in zip(padded, lengths, strict=True)]
    assert_same(np.concatenate(rows), alone, 1e-5)
    _, mask, _ = pack([np.zeros(length) for length in lengths], timesteps=sequences.ROW)
    assert_same(to_numpy(outputs[sequences.PACKED])[mask], alone, 1e-5)
    assert filled[sequences.PADDED] == pytest.approx(sum(lengths) / padded[..., 0].size)
    batches = list(map(to_numpy, outputs[sequences.BUCKETED]))
    assert sum(map(len, batches)) == len(lengths)
    size = sum(batch[..., 0].size for batch in batches)
    assert filled[sequences.BUCKETED] == pytest.approx(sum(lengths) / size)
    rows = iter([row for batch in batches for row in batch])
    parts = np.split(alone, np.cumsum(lengths)[:-1])
    bucket_of = np.searchsorted(sequences.BUCKETS, lengths)
    for k in np.argsort(bucket_of, kind="stable"):
        assert_same(next(rows)[: lengths[k]], parts[k], 1e-5)
    text = sequences.table({"machine": {}, "filled": filled, "cases": {"x": case}})
    assert f"| {sequences.ALONE} | 4e+03 | 4.00 (4.00 to 4.00) |" in text


def test_the_runs_of_streams_have_equal_results():
    runs = sequences.many_streams(1000, at_once=3)
    for run in runs.values():
        run.do()
