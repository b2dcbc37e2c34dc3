"""The demo trains, draws and counts as it says."""

from types import SimpleNamespace

import keras
import numpy as np
import pytest
from scipy import stats
from sklearn.datasets import load_digits

from benchmarks.demo import __main__ as demo
from benchmarks.demo.picture import save_picture
from benchmarks.demo.report import findings, signed
from benchmarks.demo.writer import (
    KINDS,
    TEMPERATURE,
    Writer,
    class_states,
    draw,
    loss_by_row,
    split,
    train,
    walk,
)
from benchmarks.evidence import text
from benchmarks.intervals import differences, interval

# The tests share one run, so one worker must run them.
pytestmark = pytest.mark.xdist_group("demo")

SIZES = {"units": 6, "epochs": 1}
SOME = ("zeros", "sampled", "conditional", "digit as input")
IMAGES = np.random.default_rng(0).integers(0, 17, (5, 8, 8))
CLASSES = np.array([3, 1, 4, 1, 9])


def random_writer(kind, seed=1):
    """An untrained writer. Training would take seconds."""
    writer = Writer(kind, SIZES["units"])
    writer([IMAGES, CLASSES])
    rng = np.random.default_rng([seed, *kind.encode()])
    for weight in writer.weights:
        weight.assign(rng.normal(0, 0.5, weight.shape))
    return writer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with two seeds and random writers: its trainings, pictures and output."""
    found = SimpleNamespace(trainings=[], printed="")
    found.output = tmp_path_factory.mktemp("demo") / "new" / "picture.png"

    def train(kind, seed, *arguments):
        found.trainings.append((kind, seed, *arguments))
        return random_writer(kind, seed)

    def save(path, losses, digits, walks):
        found.digits, found.walks = digits, walks
        save_picture(path, losses, digits, walks)

    def show(text):
        found.printed += text + "\n"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(demo, "KINDS", {kind: kind for kind in SOME})
        patched.setattr(demo, "train", train)
        patched.setattr(demo, "save_picture", save)
        patched.setattr("builtins.print", show)
        options = [f"--{name}={value}" for name, value in SIZES.items()]
        found.losses = demo.main([*options, "--quick", "--output", str(found.output)])
    return found


def cells_of(table):
    """Returns the cells of a printed table by the name of the column."""
    lines = [[c.strip() for c in line.split("  ") if c] for line in table.splitlines()]
    assert [line[0] for line in lines] == ["row", *map(str, range(1, 9)), "image"]
    return {name: list(cells) for name, *cells in list(zip(*lines, strict=True))[1:]}


def test_tables_show_the_losses(run):
    losses = run.losses
    *_, loss_table, difference_table, ending = run.printed.split("\n\n")
    assert str(run.output) in ending

    loss_cells = cells_of(loss_table.partition("\n")[2])
    assert tuple(loss_cells) == tuple(losses) == SOME
    for kind, values in losses.items():
        assert values.shape == (2, 8)
        mean = (values[0] + values[1]) / 2
        assert loss_cells[kind] == [f"{cell:.2f}" for cell in [*mean, mean.sum()]]

    difference_cells = cells_of(difference_table.partition("\n")[2])
    assert tuple(difference_cells) == SOME[1:]
    for kind, cells in difference_cells.items():
        pairs = [
            np.column_stack([losses[k], losses[k].sum(axis=1)]) for k in (kind, "zeros")
        ]
        low, high = stats.ttest_rel(*pairs).confidence_interval(0.95)
        expected = [
            f"{(a + b) / 2:+.2f} \u00b1 {(b - a) / 2:.2f}"
            for a, b in zip(low, high, strict=True)
        ]
        assert cells == expected


def test_each_seed_has_its_trainings_and_its_split(run):
    seeds = [(kind, seed) for seed in range(2) for kind in SOME]
    assert [training[:2] for training in run.trainings] == seeds
    for kind, seed, *arguments in run.trainings[-2:]:
        (images, classes), test = split(seed)
        np.testing.assert_array_equal(arguments[0], images)
        np.testing.assert_array_equal(arguments[1], classes)
        assert arguments[2:] == list(SIZES.values())
        found = loss_by_row(random_writer(kind, seed), *test)
        np.testing.assert_allclose(run.losses[kind][seed], found, rtol=1e-6)


def test_it_learns_and_kinds_differ():
    training, test = split(1)

    def losses_of(kind):
        return loss_by_row(train(kind, 1, *training, **SIZES), *test)

    losses = {kind: losses_of(kind) for kind in ("zeros", "sampled", "conditional")}
    by_guessing = 64 * np.log(17)
    for values in losses.values():
        assert values.sum() < 0.8 * by_guessing
    # If a sampled state was not drawn in training, it would equal zeros.
    assert (losses["sampled"] != losses["zeros"]).all()
    # The same seed gives the same result.
    np.testing.assert_allclose(losses_of("sampled"), losses["sampled"], rtol=1e-6)


def width_of(png):
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big")


def test_picture(run, tmp_path):
    assert width_of(run.output.read_bytes()) == 1600
    # One seed has no intervals.
    losses = {kind: np.ones((1, 8)) for kind in KINDS}
    drawn, walks = np.zeros((6, 10, 8, 8)), {(3, 8): np.zeros((10, 8, 8))}
    save_picture(tmp_path / "a.png", losses, drawn, walks)
    assert width_of((tmp_path / "a.png").read_bytes()) == 1600


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def log_likelihood(writer, image, number):
    """Returns in NumPy the log of the probability of each level, of each pixel."""
    kernel, recurrent, bias = (np.array(w) for w in writer.lstm.cell.weights)
    h = c = np.zeros(SIZES["units"])
    one_hot = np.zeros(10)
    if writer.kind == "conditional":
        h, c = (
            np.array(s.encoder.embeddings)[number] for s in writer.lstm.initial_state
        )
    if writer.kind == "digit as input":
        one_hot[number] = 1
    above, logs = np.zeros(8), np.empty((8, 8, 17))
    layers = writer.from_above, writer.from_left, writer.logits
    (up, up_bias), (left, left_bias), (out, out_bias) = (
        [np.array(w) for w in layer.weights] for layer in layers
    )
    for row, pixels in enumerate(image / 16):
        x = np.concatenate([above, one_hot])
        i, f, g, o = np.split(x @ kernel + h @ recurrent + bias, 4)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        from_above = (h @ up + up_bias).reshape(8, -1)
        for column in range(8):
            features = from_above[column] + left_bias
            for distance in range(1, column + 1):
                # The nearest pixel is the last that the convolution reads.
                features = features + pixels[column - distance] * left[-distance, 0]
            logits = np.maximum(features, 0) @ out + out_bias
            logs[row, column] = logits - np.log(np.exp(logits).sum())
        above = pixels
    return logs


@pytest.mark.parametrize("kind", ["zeros", "conditional", "digit as input"])
def test_loss_by_row_in_numpy(kind):
    writer = random_writer(kind)
    expected = []
    for image, number in zip(IMAGES, CLASSES, strict=True):
        logs = log_likelihood(writer, image, number)
        drawn = [[logs[r, c, image[r, c]] for c in range(8)] for r in range(8)]
        expected.append(-np.sum(drawn, axis=1))
    found = loss_by_row(writer, IMAGES, CLASSES)
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-4)


def test_drawings_follow_from_the_random_numbers():
    writer = random_writer("conditional")
    chances = np.random.default_rng(2).random((10, 8, 8))
    drawn = draw(writer, class_states(writer), chances)
    assert len(np.unique(drawn)) > 10
    for number in (0, 7):
        image = drawn[number]
        logits = log_likelihood(writer, image, number) / TEMPERATURE
        odds = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
        for place in np.ndindex(8, 8):
            level = image[place]
            below, with_it = odds[place][:level].sum(), odds[place][: level + 1].sum()
            assert below - 1e-5 < chances[number][place] < with_it + 1e-5


def test_numbers_are_shared_along_a_line(run, monkeypatch):
    drawn, walks = run.digits, run.walks
    assert drawn.shape == (6, 10, 8, 8)
    for (first, last), steps in walks.items():
        assert steps.shape == (10, 8, 8)
        assert (steps[0] == drawn[0, first]).all()
        assert (steps[-1] == drawn[0, last]).all()
        assert (steps[0] != steps[-1]).any()

    equal = [np.full((10, SIZES["units"]), value, "float32") for value in (0.3, -0.2)]
    monkeypatch.setattr(demo, "class_states", lambda _: equal)
    drawn, walks = demo.drawings(random_writer("conditional"))
    assert (drawn == drawn[:, :1]).all()
    assert all((line != drawn[0]).any() for line in drawn[1:])
    assert all((steps == drawn[0]).all() for steps in walks.values())


def test_walk_is_straight():
    states = class_states(random_writer("conditional"))
    for state, steps in zip(states, walk(states, 3, 8), strict=True):
        np.testing.assert_array_equal(steps[[0, -1]], state[[3, 8]])
        expected = np.broadcast_to((state[8] - state[3]) / 9, (9, SIZES["units"]))
        np.testing.assert_allclose(np.diff(steps, axis=0), expected, atol=1e-6)


def test_kinds_share_weights_at_first():
    def weights(kind):
        keras.utils.set_random_seed(4)
        writer = Writer(kind, SIZES["units"], seed=4)
        writer([IMAGES, CLASSES])
        layers = (writer.lstm.cell, writer.from_above, writer.from_left, writer.logits)
        return [np.array(w) for layer in layers for w in layer.weights]

    expected = weights("zeros")
    assert len(expected) == 9
    for kind in KINDS:
        for found, value in zip(weights(kind), expected, strict=True):
            np.testing.assert_array_equal(found, value)


def test_each_image_is_in_one_part():
    (images, classes), (test_images, test_classes) = split(3)
    assert len(images) + len(test_images) == 1797
    everything = np.concatenate([images, test_images]).reshape(1797, 64)
    every_digit = load_digits().data
    assert sorted(map(tuple, everything)) == sorted(map(tuple, every_digit))
    # A fifth of each class.
    expected = np.bincount(classes) / 4
    np.testing.assert_allclose(np.bincount(test_classes), expected, atol=1)
    assert (split(3)[0][0] == images).all()
    assert (split(4)[0][0] != images).any()


def test_interval_of_one_value():
    mean, half = interval(differences({"a": np.ones(1), "b": np.zeros(1)}, "a")["b"])
    assert mean == -1 and np.isnan(half)


@pytest.mark.parametrize(
    ("shift", "verdict"),
    [(0.1, "as well as"), (2.0, "worse than"), (-2.0, "better than")],
)
def test_verdict_on_the_class_as_an_input(shift, verdict):
    around = np.array([-0.2, 0.1, 0.1])
    totals = {
        "zeros": np.full(3, 80.0),
        "trainable": 80 + around,
        "conditional": np.full(3, 75.0),
        "digit as input": 75 + shift + around,
    }
    lower, same, ending = findings(totals).splitlines()
    assert lower == "Loss lower than with zeros: conditional, digit as input."
    assert same == "No significant difference to zeros: trainable."
    assert f"does {verdict} conditional" in ending
    assert f"loss {shift:+.2f} \u00b1 0.43" in ending


def test_one_seed_has_no_intervals():
    assert "no intervals" in findings({k: np.ones(1) for k in KINDS})
    assert signed(np.full((1, 2), -0.5)) == ["-0.50", "-0.50"]


@pytest.mark.parametrize("main", [demo.main, text.main], ids=["demo", "text"])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "0"], "argument --seeds: expected an integer >= 1, got '0'"),
        (["--units", "-3"], "argument --units: expected an integer >= 1, got '-3'"),
        (["--epochs", "1.5"], "argument --epochs: expected an integer >= 1, got '1.5'"),
        (["--output", "picture.jpg"], "must end in .png"),
    ],
)
def test_invalid_arguments(main, arguments, message, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit):
        main(arguments)

    assert message in capsys.readouterr().err


def test_options_override_quick():
    given = demo.parse_args(["--quick", "--seeds", "7"])
    assert (given.seeds, given.units) == (7, demo.QUICK["units"])
    assert demo.parse_args([]).seeds >= 5
