"""The evidence: its data, models, trainings and tables."""

import json
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy import stats

from benchmarks.evidence import data, jobs
from benchmarks.evidence.__main__ import FULL, QUICK, parse_args
from benchmarks.evidence.adaptation import (
    ADAPTATION,
    METHODS,
    NOTHING,
    RANKS,
    STATE,
    Adaptation,
)
from benchmarks.evidence.claims import CLAIMS, answers, count
from benchmarks.evidence.forest import ROWS, rows_of
from benchmarks.evidence.losses import Losses
from benchmarks.evidence.low_rank import LowRank
from benchmarks.evidence.models import (
    LAST_VALUE,
    LAYER,
    NEEDS,
    PAST_EVERY_STEP,
    PAST_FIRST,
    build,
    kinds_of,
    units_of_equal_weights,
    weight_count,
)
from benchmarks.evidence.report import (
    adaptation_table,
    save_report,
    state_table,
    states_and_inputs,
    summary,
    table,
)
from benchmarks.evidence.tasks import TASKS
from benchmarks.evidence.trainer import CHECKS, Trainer, batches, mean

# The tests share the data, so one worker must run them.
pytestmark = pytest.mark.xdist_group("evidence")

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
BY_NAME = {task.name: task for task in TASKS}
TRAINED = [
    (task.name, kind) for task in TASKS for kind in kinds_of(task) if kind != LAST_VALUE
]
SETTINGS = QUICK | {"share": 0.05, "rates": [0.01, 0.03]}


@pytest.fixture
def two_kinds(monkeypatch):
    monkeypatch.setattr(jobs, "kinds_of", lambda _: ["zeros", LAST_VALUE])


class TestTasks:
    @pytest.mark.parametrize("name", BY_NAME)
    def test_the_seed_determines_the_parts(self, name):
        split = BY_NAME[name].split
        for part, again in zip(split(3, "few"), split(3, "few"), strict=True):
            np.testing.assert_array_equal(part.inputs, again.inputs)
            np.testing.assert_array_equal(part.targets, again.targets)
        assert len(split(3, "few")[0]) < len(split(3, "many")[0])

    @pytest.mark.parametrize("name", ["chicks", "power", "vowels", "digits", "sea"])
    def test_no_sequence_is_in_two_parts(self, name):
        parts = BY_NAME[name].split(0, "many")
        rows = [{row.tobytes() for row in part.targets} for part in parts]
        # A few images of digits are there twice.
        same = len(set.union(*rows)) / sum(map(len, rows))
        assert same == 1 if name != "digits" else same > 0.99

    @pytest.mark.parametrize("name", ["chicks", "power", "vowels", "digits"])
    def test_inputs_are_the_previous_targets(self, name):
        for part in BY_NAME[name].split(0, "few"):
            scale = 16 if name == "digits" else 1
            assert not part.inputs[:, 0].any()
            np.testing.assert_allclose(
                part.inputs[:, 1:] * scale, part.targets[:, :-1], atol=1e-6
            )

    def test_characters_continue_the_past(self):
        test = BY_NAME["text"].split(0, "few")[2]
        np.testing.assert_array_equal(test.inputs[:, 1:], test.targets[:, :-1, 0])
        whole = np.concatenate([test.known["past"], test.inputs], axis=1)
        text = data.text()[1].astype("uint8").tobytes()
        rows = [row.astype("uint8").tobytes() for row in whole[:20]]
        assert all(row in text for row in rows)

    def test_a_country_is_the_same_in_all_parts(self):
        train, validation, test = BY_NAME["countries"].split(0, "few")
        for part in (train, validation):
            for identity, features in zip(
                part.known["identity"], part.known["features"], strict=True
            ):
                (row,) = np.flatnonzero(test.known["identity"] == identity)
                np.testing.assert_array_equal(features, test.known["features"][row])
        # The past ends where the sequence begins.
        np.testing.assert_array_equal(test.known["past"][:, -1, 1], test.last[:, 0, 0])

    def test_the_last_value_of_the_sea_is_the_one_before_the_chunk(self):
        batch = BY_NAME["sea"].batch_size
        for part in BY_NAME["sea"].split(0, "few"):
            before = part.targets[:-batch, -1:]
            np.testing.assert_array_equal(
                part.last[batch:], np.repeat(before, data.CHUNK, axis=1)
            )


class TestModels:
    @pytest.mark.parametrize(("name", "kind"), TRAINED)
    def test_predictions_do_not_depend_on_later_inputs(self, name, kind):
        task = BY_NAME[name]
        data = task.split(0, "few")[0][np.arange(task.batch_size) % 8]
        model = build(task, kind, 5, data, seed=1, use_fused=False)
        needs = NEEDS.get(kind)
        known = [data.known[needs]] if needs else []

        def outputs(inputs):
            if kind.startswith("carried"):
                model.get_layer("lstm").reset_state()
            return keras.ops.convert_to_numpy(model([inputs, *known]))

        changed = data.inputs.copy()
        changed[:, 5:] += 1
        before, after = outputs(data.inputs), outputs(changed)
        assert before.shape[:2] == data.targets.shape[:2]
        np.testing.assert_array_equal(before[:, :5], after[:, :5])
        assert (before[:, 5] != after[:, 5]).any()

    @pytest.mark.parametrize(
        ("name", "kind"), [pair for pair in TRAINED if NEEDS.get(pair[1])]
    )
    def test_metadata_are_read(self, name, kind):
        task = BY_NAME[name]
        data = task.split(0, "few")[0][np.arange(8)]
        model = build(task, kind, 5, data, seed=1, use_fused=False)
        rng = np.random.default_rng(0)
        model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
        known = data.known[NEEDS[kind]]
        other = (known + 1) % 2 if known.dtype.kind == "i" else known + 1
        first, second = (
            keras.ops.convert_to_numpy(model([data.inputs, k])[:, 0])
            for k in (known, other.astype(known.dtype))
        )
        assert (first != second).any()

    def test_the_past_is_read_by_an_encoder_of_keras(self):
        task = BY_NAME["countries"]
        part = task.split(0, "few")[0][np.arange(8)]
        model = build(task, "past", 5, part, seed=1, use_fused=False)
        lstm, dense = model.get_layer(LAYER), model.layers[-1]
        encoder = keras.layers.LSTM(5, return_state=True)
        encoder.build(part.known["past"].shape)
        encoder.set_weights(lstm.h0.encoder.get_weights())
        _, *states = encoder(part.known["past"])
        decoder = keras.layers.LSTM(5, return_sequences=True)
        decoder.build(part.inputs.shape)
        decoder.set_weights(lstm.cell.get_weights())
        np.testing.assert_allclose(
            model([part.inputs, part.known["past"]]),
            dense(decoder(part.inputs, initial_state=states)),
            atol=1e-6,
        )
        weights = [encoder, decoder, dense]
        assert weight_count(model) == sum(w.count_params() for w in weights)

    @pytest.mark.parametrize(
        ("name", "kind"),
        [pair for pair in TRAINED if pair[1] in (PAST_FIRST, PAST_EVERY_STEP)],
    )
    def test_equal_weights(self, name, kind, monkeypatch):
        task = BY_NAME[name]
        part = task.split(0, "few")[0][np.arange(8)]
        wanted = weight_count(build(task, "past", 9, part, 0, use_fused=False))
        best = units_of_equal_weights(task, kind, 9, part)

        def distance(units):
            function = "benchmarks.evidence.models.units_of_equal_weights"
            monkeypatch.setattr(function, lambda *_: units)
            model = build(task, kind, 9, part, 0, use_fused=False)
            return abs(weight_count(model) - wanted)

        assert distance(best) <= min(distance(best - 1), distance(best + 1))

    def test_noise_is_not_learned(self):
        task = BY_NAME["chicks"]
        part = task.split(0, "few")[0]
        model = build(task, "noisy", 5, part, 0, use_fused=False)
        learned = build(task, "trainable", 5, part, 0, use_fused=False)
        assert weight_count(model) == weight_count(learned)
        h0 = model.get_layer(LAYER).h0
        np.testing.assert_allclose(h0.stddev, np.full(5, 0.1), atol=1e-7)


class TestLowRank:
    @pytest.fixture
    def model(self):
        task = BY_NAME["vowels"]
        part = task.split(0, "few")[0]
        return build(task, "trainable", 4, part, 0, use_fused=False)

    def test_outputs_equal_a_model_with_the_adapted_kernels(self, model):
        adapted = LowRank(model, model.get_layer(LAYER), rank=2)
        inputs = [BY_NAME["vowels"].split(0, "few")[0].inputs[:3]]
        before = keras.ops.convert_to_numpy(model(inputs))
        adapted.restart(3)
        np.testing.assert_array_equal(adapted(inputs), before)
        rng = np.random.default_rng(0)
        factors = [rng.normal(size=v.shape) for v in adapted.trainable_variables]
        for variable, value in zip(adapted.trainable_variables, factors, strict=True):
            variable.assign(value)
        after = keras.ops.convert_to_numpy(adapted(inputs))
        np.testing.assert_array_equal(model(inputs), before)
        cell = model.get_layer(LAYER).cell
        cell.kernel.assign_add(factors[0] @ factors[1])
        cell.recurrent_kernel.assign_add(factors[2] @ factors[3])
        np.testing.assert_allclose(model(inputs), after, atol=1e-5)
        assert abs(after - before).max() > 0.01

    def test_only_the_factors_are_learned(self, model):
        adapted = LowRank(model, model.get_layer(LAYER), rank=1)
        # The inputs of the kernels are 12 and 4, their outputs 16.
        assert weight_count(adapted) == (12 + 16) + (4 + 16)

    def test_a_model_that_is_not_adapted_is_the_start_of_each_way(self):
        adaptation = Adaptation(BY_NAME["vowels"], 4, [0.01], use_fused=False)
        adaptation.meet(0, steps=10)
        unchanged = adaptation.loss(NOTHING, 2, 0.0, 0)
        for method in (STATE, *RANKS):
            changed = adaptation.loss(method, 2, 0.1, 0)
            assert changed != unchanged
            assert adaptation.loss(method, 2, 0.0, 0) == pytest.approx(unchanged)
            assert adaptation.loss(method, 2, 0.1, 0) == pytest.approx(changed)


class TestTrainer:
    def test_a_training_does_not_depend_on_earlier_ones(self):
        task = BY_NAME["chicks"]
        train, validation, _ = task.split(0, "few")
        trainer = Trainer(task, "sampled", 4, train, use_fused=False)
        first = trainer.fit(train, validation, 1, 0.03, steps=20)
        assert mean(trainer.losses(validation), validation) == pytest.approx(first)
        weights = trainer.model.get_weights()
        trainer.fit(train, validation, 2, 0.1, steps=20)
        assert trainer.fit(train, validation, 1, 0.03, steps=20) == first
        for value, again in zip(weights, trainer.model.get_weights(), strict=True):
            np.testing.assert_array_equal(value, again)

    def test_the_first_step_equals_keras(self):
        task = BY_NAME["chicks"]
        train, _, _ = task.split(0, "few")
        trainer = Trainer(task, "trainable", 4, train, use_fused=False)
        alone = build(task, "trainable", 4, train, seed=0, use_fused=False)
        alone.compile(
            keras.optimizers.Adam(0.03, clipnorm=1.0),
            lambda y, outputs: keras.ops.square(y - outputs),
        )
        alone.train_on_batch(train.inputs, train.targets, train.weights[..., None])
        # Of steps that follow each other with a rate near zero, the first counts.
        next(trainer.passes(train, seed=0, rate=0.03, steps=CHECKS))
        for value, want in zip(
            trainer.model.get_weights(), alone.get_weights(), strict=True
        ):
            np.testing.assert_allclose(value, want, atol=1e-5)

    @pytest.mark.parametrize("name", ["power", "sea"])
    def test_batches(self, name):
        task = BY_NAME[name]
        count = 5 * task.batch_size
        rows = batches(task, count, seed=0, steps=15)
        np.testing.assert_array_equal(np.bincount(rows.ravel()), [3] * count)
        follows = (rows.ravel()[:count] == np.arange(count)).all()
        assert follows == task.stream


class TestRun:
    def test_a_killed_run_continues(self, two_kinds, tmp_path):
        # In this process: another one takes seconds to start.
        every = jobs.jobs(["chicks"], SETTINGS)
        assert [job["kind"] for job in every] == ["zeros", LAST_VALUE]
        for job in every:
            jobs.work((job, SETTINGS, tmp_path))
        first = [
            record
            for job in every
            for record in json.loads(jobs.path_of(job, tmp_path).read_text())
        ]
        assert len(first) == 2 * SETTINGS["seeds"]
        done = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        (lost,) = [path for path in done if "zeros" in path.name]
        lost.rename(lost.with_suffix(".unfinished"))
        records = jobs.train_all(["chicks"], SETTINGS, tmp_path)
        for record, expected in zip(records, first, strict=True):
            # One thread may add in another order than many.
            assert record == {k: pytest.approx(v) for k, v in expected.items()}
        for path, when in done.items():
            assert (path.stat().st_mtime_ns == when) == (path != lost)

    def test_a_folder_of_other_settings_raises(self, tmp_path, capsys):
        parse_args(["--output", str(tmp_path), "--work", str(tmp_path)])
        with pytest.raises(SystemExit):
            parse_args(["--quick", "--output", str(tmp_path), "--work", str(tmp_path)])
        assert "other settings" in capsys.readouterr().err


class TestReport:
    @pytest.fixture
    def records(self):
        rng = np.random.default_rng(0)
        return [
            {
                "task": task,
                "units": units,
                "size": size,
                "kind": kind,
                "seed": seed,
                "rate": 0.01,
                "weights": 1234,
                "loss": float(rng.lognormal(kind == "trainable", 0.1)),
                "by_timestep": rng.lognormal(kind == "trainable", 0.1, 4).tolist(),
            }
            for task, kinds, sizes in [
                *((task.name, kinds_of(task), ("many", "few")) for task in TASKS),
                (ADAPTATION, METHODS, (1, 4)),
            ]
            for kind in kinds
            for units in (4, 8)
            for size in sizes
            for seed in range(5)
        ]

    def test_files_hold_the_records(self, records, tmp_path):
        path = tmp_path / "evidence.png"
        text = save_report(path, records, SETTINGS)
        assert path.with_suffix(".md").read_text() == text
        kept = json.loads(path.with_suffix(".json").read_text())["records"]
        for record, want in zip(kept, records, strict=True):
            assert record["loss"] == pytest.approx(want["loss"], rel=1e-5)
            assert record["by_timestep"] == pytest.approx(want["by_timestep"], rel=1e-5)
            assert {**record, "loss": 0, "by_timestep": 0} == {
                **want,
                "loss": 0,
                "by_timestep": 0,
            }
        for picture in (path, tmp_path / "evidence_by_timestep.png"):
            assert picture.read_bytes()[:4] == b"\x89PNG"
        assert "](evidence_by_timestep.png)" in text
        for task in TASKS:
            section = text.partition(f"### {task.name}: 8 units, many sequences")[2]
            assert section.startswith(f"\n\n| initial state | {task.loss_name} |")
        assert "1,234 (initial state alone)" in text
        assert summary(Losses(records), set(BY_NAME)) in text
        # Two rows of the past of countries, one of the past of text, five of metadata.
        assert states_and_inputs(Losses(records), set(BY_NAME)).count("\n") == 1 + 3 + 6

    def test_the_picture_shows_the_task_in_its_size(self, records):
        rows = rows_of(Losses(records), {*BY_NAME, ADAPTATION})
        assert len(rows) == sum(1 + len(kinds) for *_, kinds in ROWS)
        headings = [row if isinstance(row, str) else "" for row in rows]
        (chicks,) = [at for at, heading in enumerate(headings) if "8 chicks" in heading]
        label, _, logs = rows[chicks + 3]
        assert label == "one state, learned for all"
        found = Losses(records).of("chicks", 8, "few")
        want = np.log(found["trainable"][:, -1] / found["zeros"][:, -1])
        np.testing.assert_allclose(logs, want)

    def test_the_picture_of_a_part_of_the_tasks(self, records):
        few = [r for r in records if r["size"] in ("few", 1)]
        rows = rows_of(Losses(few), {"power", ADAPTATION})
        assert [row for row in rows if isinstance(row, str)] == [
            "a day of power (squared error)",
            "a new speaker, 4 examples (squared error, to no adaptation)",
        ]

    def test_intervals_equal_a_paired_test(self, records):
        losses = Losses(records)
        line = next(
            line
            for line in table(losses, BY_NAME["power"], 8, "few").split("\n")
            if line.startswith("| trainable |")
        )
        pairs = [
            [
                np.log(r["loss"])
                for r in records
                if (r["task"], r["units"], r["size"], r["kind"])
                == ("power", 8, "few", kind)
            ]
            for kind in ("trainable", "zeros")
        ]
        low, high = stats.ttest_rel(*pairs).confidence_interval(0.95)
        middle = np.mean(np.subtract(*pairs))
        want = [f"{100 * np.expm1(x):+.1f}" for x in (middle, low, high)]
        cells = line.split(" | ")
        assert "{} % ({} to {})".format(*want) == cells[2]
        root = [f"{100 * np.expm1(x / 2):+.1f}" for x in (middle, low, high)]
        assert "{} % ({} to {})".format(*root) == cells[3]

    def test_claims_are_counted(self, records):
        losses = Losses(records)
        by_claim = {claim[1]: count(losses, claim) for claim in CLAIMS}
        # A trainable state has e times the loss of all else, in 7 tasks by 4.
        assert by_claim[
            "a learned initial state lowers the loss early in a sequence"
        ] == (0, 28, 0)
        assert by_claim["noise in the initial state regularises"] == (24, 0, 0)


class TestResults:
    """The committed results of the last full run, and their figures in documents."""

    def test_tables_show_the_records(self):
        kept = json.loads((RESULTS / "evidence.json").read_text())
        losses = Losses(kept["records"])
        text = (RESULTS / "evidence.md").read_text()
        names = {record["task"] for record in kept["records"]}
        assert names == {*BY_NAME, ADAPTATION}
        assert kept["settings"] == FULL
        for expected in (
            summary(losses, names),
            answers(losses),
            table(losses, BY_NAME["vowels"], 16, "few"),
            adaptation_table(losses, 64),
            state_table(losses, 64),
            states_and_inputs(losses, names),
        ):
            assert expected in text

    def test_figures_of_the_documents_are_in_the_tables(self):
        text = (RESULTS / "evidence.md").read_text()
        root = RESULTS.parents[1]
        readme = (root / "README.md").read_text()
        documents = readme, (root / "benchmarks" / "README.md").read_text()
        found = [re.findall(r"[+-][\d.]+ % \([^)]* to [^)]*\)", d) for d in documents]
        assert len(found[0]) >= 12
        for figures in found:
            assert not [figure for figure in figures if figure not in text]
        losses = Losses(json.loads((RESULTS / "evidence.json").read_text())["records"])
        assert answers(losses) in documents[1]
