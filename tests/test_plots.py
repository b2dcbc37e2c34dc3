"""Plots of initial states: what they show, and the data from which they are drawn."""

import re
import sys

import keras
import matplotlib
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backends import FLOAT64
from keras_init_lstm import (
    Conditional,
    Fixed,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    Trainable,
)
from keras_init_lstm.plots import plot_initial_state
from models import BATCH, FEATURES, TIMESTEPS, PerRow, X, normal
from oracles import assert_same, flat, owned_values, tiled_states, to_numpy

matplotlib.use("Agg")
from matplotlib import pyplot as plt

MASKS = {
    "no mask": None,
    "right": np.arange(TIMESTEPS) < np.array([[TIMESTEPS], [3], [1], [0]]),
    "holes": np.random.default_rng(0).random((BATCH, TIMESTEPS)) < 0.5,
}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def layer_with_weights(layer):
    layer.build((None, None, FEATURES))
    return layer


def lstm(**kwargs):
    return InitStateLSTM(3, initial_state=[[0.5, -0.5, 2.0], "trainable"], **kwargs)


def any_cell(**kwargs):
    cells = [
        keras.layers.LSTMCell(3, dtype=kwargs.get("dtype")),
        keras.layers.GRUCell(2, dtype=kwargs.get("dtype")),
    ]
    stacked = keras.layers.StackedRNNCells(cells, dtype=kwargs.get("dtype"))
    start = [[Fixed([0.5, -0.5, 2.0]), "trainable"], 0.25]
    return InitStateRNN(stacked, initial_state=start, **kwargs)


MAKERS = {
    "LSTM": lstm,
    "GRU": lambda **kwargs: InitStateGRU(3, initial_state=[[1, 2, -3]], **kwargs),
    "SimpleRNN": lambda **kwargs: InitStateSimpleRNN(2, initial_state=0.5, **kwargs),
    "stacked": any_cell,
}


def visited_by_prefixes(layer, x, mask):
    """The states after every timestep, from a run of Keras's loop for each timestep."""
    rnn = keras.layers.RNN(layer.cell, return_state=True, dtype=layer.dtype_policy)
    mask = np.ones(x.shape[:2], bool) if mask is None else mask
    if layer.go_backwards:
        x, mask = x[:, ::-1], mask[:, ::-1]
    start = tiled_states(layer, len(x))
    visited = []
    for end in range(1, x.shape[1] + 1):
        _, *states = rnn(x[:, :end], initial_state=start, mask=mask[:, :end])
        states = [state.astype("float64") for state in flat(states)]
        visited.append([state[mask[:, end - 1]] for state in states])
    return [np.concatenate(states) for states in zip(*visited, strict=True)]


def drawn(ax):
    """The data in the axes: arrays by the labels of the legend."""
    found = {}
    for container in ax.containers:
        if isinstance(container, matplotlib.container.BarContainer):
            boxes = [bar.get_bbox() for bar in container]
            found[container.get_label()] = np.array([(b.y0, b.y1) for b in boxes]).T
        else:
            (lines,) = container[2]
            ends = [segment[:, 1] for segment in lines.get_segments()]
            found[container.get_label()] = np.array(ends).T
    for lines in ax.collections:
        if not lines.get_label().startswith("_"):
            segments = np.array(lines.get_segments())
            np.testing.assert_allclose(
                segments[:, :, 0].mean(axis=1), np.arange(len(segments))
            )
            found[lines.get_label()] = segments[:, 0, 1]
    for line in ax.lines:
        if not line.get_label().startswith("_"):
            found[line.get_label()] = dict(zip(*line.get_data(), strict=True))
    texts = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(texts) == sorted(found)
    return found


def in_plane(ax):
    """The data in the axes of the plane: arrays of points `(points, 2)`."""
    dots, *lines = ax.lines
    assert dots.get_label() == "visited: all"
    *pairs, start = lines
    return {
        "visited": np.transpose(dots.get_data()),
        "initial_values": np.transpose(start.get_data()),
        "names": [text.get_text() for text in ax.texts],
        "named at": [text.xy for text in ax.texts],
        "paths": [np.transpose(line.get_data()) for line in pairs[::2]],
        "ends": [np.transpose(line.get_data()) for line in pairs[1::2]],
        "looks": [(p.get_color(), p.get_linestyle()) for p in pairs[::2]],
        "shares": np.array(
            [
                float(re.search(r"\((\d+) % of", label)[1])
                for label in (ax.get_xlabel(), ax.get_ylabel())
            ]
        ),
        "legend": [text.get_text() for text in ax.get_legend().get_texts()],
    }


def by_covariance(visits):
    """Whether the first two components are unique, the projection, and their shares.

    They are computed as eigenvectors of the covariance. Their largest entries are
    positive.
    """
    centered = visits - visits.mean(axis=0)
    values, vectors = np.linalg.eigh(centered.T @ centered)
    values, vectors = values[::-1].clip(0), vectors[:, ::-1][:, :2]
    sizes = np.sort(np.abs(vectors), axis=0)
    # Components of equal variances are not unique, nor are signs that rounding decides.
    gaps = -np.diff(values[:3], append=0.0) / values[0]
    have_gaps = len(values) > 1 and gaps[:2].min() > 0.05
    are_unique = have_gaps and (sizes[-1] - sizes[-2]).min() > 1e-3
    vectors = vectors * [1 if v[np.abs(v).argmax()] > 0 else -1 for v in vectors.T]
    shares = np.append(values[:2], [0.0])[:2] / values.sum()
    return are_unique, lambda states: (states - visits.mean(axis=0)) @ vectors, shares


def assert_same_cloud(got, want, atol=1e-4):
    """Asserts that two sets of points are equal, in any order."""
    assert got.shape == want.shape
    far = np.abs(got[:, None] - want).max(axis=2)
    assert (far.min(axis=0) < atol).all() and (far.min(axis=1) < atol).all()


def states_step_by_step(layer, x, start):
    """The states of Keras's LSTM, `(1 + timesteps, batch, 2 * units)`.

    It calls the LSTM with explicit states for each timestep.
    """
    lstm = keras.layers.LSTM(layer.units, return_state=True)
    lstm.build(x.shape)
    lstm.set_weights(layer.cell.get_weights())
    states, found = start, [np.concatenate(start, axis=1)]
    for step in range(x.shape[1]):
        _, *states = lstm(x[:, step : step + 1], initial_state=states)
        states = [to_numpy(state) for state in states]
        found.append(np.concatenate(states, axis=1))
    return np.array(found, "float64")


def initial_values(found, what="initial state"):
    """The values of the dots of both colours, from left to right."""
    outside = f"{what}, outside 10 to 90 %"
    dots = {**found.get(what, {}), **found.get(outside, {})}
    return [dots[at] for at in range(len(dots))]


class TestPlot:
    @pytest.mark.parametrize(
        ("dtype", "go_backwards", "mask"),
        [
            ("float32", False, "no mask"),
            ("float32", False, "right"),
            ("float32", True, "holes"),
            pytest.param(*FLOAT64.values, True, "right", marks=FLOAT64.marks),
            ("mixed_bfloat16", False, "holes"),
        ],
    )
    @pytest.mark.parametrize("kind", MAKERS)
    def test_the_visited_states_equal_keras(self, kind, dtype, go_backwards, mask):
        x, mask = X, MASKS[mask]
        layer = MAKERS[kind](dtype=dtype, go_backwards=go_backwards)
        layer.build(x.shape)
        figure = plot_initial_state(layer, x, mask)
        visited = visited_by_prefixes(layer, x, mask)
        assert len(visited) == len(layer.state_names)
        *axes, plane = figure.axes
        for ax, value, visits in zip(axes, owned_values(layer), visited, strict=True):
            found = drawn(ax)
            low, high = np.percentile(visits, [10, 90], axis=0)
            tolerance = {
                "rtol": 0,
                "atol": 1e-2 if dtype == "mixed_bfloat16" else 1e-6,
            }
            for label, want in {
                "visited: all": (visits.min(axis=0), visits.max(axis=0)),
                "visited: 10 to 90 %": (low, high),
                "visited: median": np.median(visits, axis=0),
            }.items():
                np.testing.assert_allclose(found[label], want, **tolerance)
            np.testing.assert_allclose(initial_values(found), value.astype("float64"))
        found = in_plane(plane)
        together = np.concatenate(owned_values(layer)).astype("float64")
        same, project, shares = by_covariance(np.concatenate(visited, axis=1))
        if dtype != "mixed_bfloat16" and same:
            wanted = {
                "visited": np.concatenate(visited, axis=1),
                "initial_values": together[None],
            }
            for what, states in wanted.items():
                assert_same_cloud(found[what], project(states))
        assert found["shares"] == pytest.approx(100 * shares, abs=0.6)
        count = BATCH * TIMESTEPS if mask is None else mask.sum()
        assert f"Initial states of {layer.name}" in figure.get_suptitle()
        assert f"each of {count} timesteps" in figure.get_suptitle()

    def test_initial_states_outside_of_the_percentiles_are_orange(self):
        layer = InitStateLSTM(3, initial_state=[[0.0, 5.0, -5.0], None])
        layer_with_weights(layer)
        kernel, *others = layer.cell.weights
        kernel.assign(np.ones(kernel.shape))
        for weight in others:
            weight.assign(np.zeros(weight.shape))
        figure = plot_initial_state(layer, X)
        found = drawn(figure.axes[0])
        assert found["initial state"] == {0: 0.0}
        assert found["initial state, outside 10 to 90 %"] == {1: 5.0, 2: -5.0}
        assert figure.axes[0].get_title("left") == (
            "h0, Fixed: L2 norm 7.07; 1 of 3 units start within 10 to 90 %"
        )

    def test_a_sampled_state_shows_mean_and_stddev(self):
        mean, stddev = [0.1, -0.2, 3.0], [0.1, 0.0, 0.5]
        layer = InitStateLSTM(3, initial_state=[Sampled(mean, stddev), None])
        for sequences in (X, None):
            figure = plot_initial_state(layer_with_weights(layer), sequences)
            found = drawn(figure.axes[0])
            np.testing.assert_allclose(initial_values(found, "mean"), mean)
            np.testing.assert_allclose(
                found["± stddev"],
                [np.subtract(mean, stddev), np.add(mean, stddev)],
                atol=1e-6,
            )
            assert figure.axes[0].get_title("left").startswith("h0, Sampled: L2 norm 3")
            assert figure.axes[1].get_title("left").startswith("c0, not owned: at zero")
            assert initial_values(drawn(figure.axes[1])) == [0, 0, 0]

    def test_without_sequences_only_the_initial_state(self):
        layer = InitStateLSTM(3, initial_state=[Trainable(), [1.0, 2.0, 3.0]])
        layer.build((None, None, FEATURES))
        figure = plot_initial_state(layer)
        assert drawn(figure.axes[0]) == {"initial state": {0: 0, 1: 0, 2: 0}}
        assert drawn(figure.axes[1]) == {"initial state": {0: 1, 1: 2, 2: 3}}
        assert figure.axes[0].get_title("left") == "h0, Trainable: at zero"
        assert figure.axes[1].get_title("left") == "c0, Fixed: L2 norm 3.74"
        assert figure.get_suptitle() == f"Initial states of {layer.name}"

    def test_units_sorted_by_their_initial_state(self):
        sampled = Sampled([0.5, 0.0, -9.0, 0.0], [0.1, 0.2, 0.3, 0.4])
        layer = InitStateLSTM(4, initial_state=[[3.0, 1.0, 4.0, 1.0], sampled])
        layer_with_weights(layer)
        as_they_are = plot_initial_state(layer, X)
        in_order = plot_initial_state(layer, X, sort=True)
        for index, what in enumerate(["initial state", "mean"]):
            ax = in_order.axes[index]
            order = [int(text.get_text()) for text in ax.get_xticklabels()]
            found, want = drawn(ax), drawn(as_they_are.axes[index])
            np.testing.assert_array_equal(
                initial_values(found, what), np.array(initial_values(want, what))[order]
            )
            outside = f"{what}, outside 10 to 90 %"
            assert {order[at] for at in found[outside]} == set(want[outside])
            for label in set(want) & {
                "visited: all",
                "visited: median",
                "± stddev",
            }:
                np.testing.assert_array_equal(
                    found[label], want[label].take(order, axis=-1)
                )
            assert initial_values(found, what) == sorted(initial_values(found, what))
            # Units with equal initial states are sorted by their medians.
            alike = (
                np.array(initial_values(found, what)) == initial_values(found, what)[0]
            )
            assert (np.diff(found["visited: median"][alike]) >= 0).all()
            assert ax.get_xlabel() == "unit, in the order of the initial state"
        assert as_they_are.axes[0].get_xlabel() == "unit"

    @pytest.mark.parametrize("units", [32, 33])
    def test_many_units_are_sorted(self, units):
        layer = InitStateLSTM(units, initial_state=Trainable("glorot_normal"))
        layer.build((None, None, FEATURES))
        for sequences in (X, None):
            for sort in (None, False):
                ax = plot_initial_state(layer, sequences, sort=sort).axes[0]
                got, value = initial_values(drawn(ax)), to_numpy(layer.h0.value)
                is_sorted = sort is None and units == 33
                assert_same(
                    [np.array(got)],
                    [(np.sort(value) if is_sorted else value).astype("float64")],
                )
                assert len(ax.get_xticks()) <= 16

    def test_given_axes(self):
        layer = layer_with_weights(lstm())
        figure = matplotlib.figure.Figure(layout="constrained")
        axes = figure.subplots(1, 3)
        assert plot_initial_state(layer, X, axes=axes[:2]) is figure
        assert not plt.get_fignums()
        assert all("visited: median" in drawn(ax) for ax in axes[:2])
        assert not figure.get_suptitle()
        assert not axes[2].lines
        plot_initial_state(layer, X, axes=axes)
        assert in_plane(axes[2])["paths"]
        single = MAKERS["GRU"]()
        single.build((None, None, FEATURES))
        assert plot_initial_state(single, axes=axes[0]) is figure
        with pytest.raises(ValueError, match="`axes` must be 2.*h0, c0. Received: 3"):
            plot_initial_state(layer, axes=axes)
        match = "`axes` must be 2.*h0, c0 .and one for the plane.. Received: 1"
        with pytest.raises(ValueError, match=match):
            plot_initial_state(layer, X, axes=axes[0])

    def test_the_layer_is_unchanged(self):
        def outputs(look):
            keras.utils.set_random_seed(1)
            layer = InitStateLSTM(
                3,
                initial_state=[Sampled(seed=1, at_inference="sample"), "trainable"],
                stateful=True,
                dropout=0.5,
                recurrent_dropout=0.5,
                seed=1,
            )
            layer.build((BATCH, None, FEATURES))
            results = []
            for training in (True, False, True):
                if look:
                    variables, states = flat(layer.variables), flat(layer.states)
                    plot_initial_state(layer, np.ones((2, 3, FEATURES)))
                    plot_initial_state(layer, np.ones((BATCH, 3, FEATURES)))
                    assert_same(layer.variables, variables)
                    assert_same(layer.states, states)
                results.append(layer(np.ones((BATCH, 2, FEATURES)), training=training))
                if not training:
                    layer.reset_state()
            return results

        assert_same(outputs(look=True), outputs(look=False))

    def test_a_layer_inside_a_model(self):
        layer = lstm(return_sequences=True)
        both = keras.layers.Bidirectional(lstm())
        model = keras.Sequential(
            [keras.Input((None, 1)), keras.layers.Dense(FEATURES), layer, both]
        )
        x = normal(BATCH, TIMESTEPS, 1)
        inputs = to_numpy(keras.Model(model.inputs, layer.input)([x]))
        figure = plot_initial_state(layer, inputs)
        visits = visited_by_prefixes(layer, inputs, None)[0]
        np.testing.assert_allclose(
            drawn(figure.axes[0])["visited: all"],
            [visits.min(axis=0), visits.max(axis=0)],
            atol=1e-6,
        )
        with pytest.raises(ValueError, match=r"Bidirectional.*Pass its `forward_layer"):
            plot_initial_state(both)
        plot_initial_state(both.backward_layer, np.ones((1, 2, 3)))

    @pytest.mark.parametrize(
        "not_a_layer", [None, "layer", keras.layers.LSTM(2), keras.Sequential()]
    )
    def test_other_layers_raise(self, not_a_layer):
        with pytest.raises(ValueError, match="`layer` must be a recurrent layer of k"):
            plot_initial_state(not_a_layer)

    def test_a_layer_must_be_built(self):
        with pytest.raises(ValueError, match="`layer` must be built"):
            plot_initial_state(lstm(), X)

    def test_a_state_without_a_value_raises(self):
        layer = InitStateLSTM(3, initial_state=[None, PerRow()])
        with pytest.raises(ValueError, match="own one value for each unit.*c0 from"):
            plot_initial_state(layer_with_weights(layer), X)

    @pytest.mark.parametrize(
        ("shape", "mask"),
        [
            ((2, 3), None),
            ((2, 3, FEATURES + 1), None),
            ((2, 3, FEATURES, 1), None),
            ((0, 3, FEATURES), None),
            ((2, 0, FEATURES), None),
            ((2, 3, FEATURES), np.ones((2, 2))),
            ((2, 3, FEATURES), np.ones((2, 3, 1))),
            ((2, 3, FEATURES), np.zeros((2, 3))),
        ],
    )
    def test_data_of_another_shape(self, shape, mask):
        message = rf"`sequences` must.*\(batch, timesteps, features\).*{FEATURES} feat"
        if mask is not None:
            message = r"`mask` must.*\(batch, timesteps\)` = \(2, 3\)"
        received = re.escape(str(shape if mask is None else mask.shape))
        with pytest.raises(ValueError, match=f"{message}.*Received.*{received}"):
            plot_initial_state(layer_with_weights(lstm()), np.zeros(shape), mask)

    @pytest.mark.parametrize("sequences", ["text", [[[np.nan, 0.0]]], object()])
    def test_data_that_are_not_finite_numbers(self, sequences):
        with pytest.raises(ValueError, match="`sequences` must be.*Received"):
            plot_initial_state(layer_with_weights(lstm()), sequences)

    def test_a_cell_with_a_custom_initial_state(self):
        layer = InitStateRNN(FromTwo(3))
        layer.build((None, None, FEATURES))
        found = drawn(plot_initial_state(layer).axes[0])
        assert initial_values(found) == [2.0] * 3

    def test_without_matplotlib(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(ImportError, match=r"pip install matplotlib") as error:
            plot_initial_state(layer_with_weights(lstm()), X)
        assert isinstance(error.value.__cause__, ImportError)


class FromTwo(keras.layers.LSTMCell):
    """A cell whose initial states are 2."""

    def get_initial_state(self, batch_size=None):
        return [keras.ops.full((batch_size, self.units), 2.0) for _ in range(2)]


def embedded(number, units=3, **kwargs):
    encoder = keras.layers.Embedding(number, units, "random_normal")
    layer = InitStateLSTM(
        units, initial_state=[Conditional(encoder), Trainable(0.25)], **kwargs
    )
    layer.build((None, None, FEATURES), context_shape=(None,))
    return layer


class TestPlane:
    @given(
        seed=st.integers(0, 99),
        ids=st.lists(st.integers(0, 9), min_size=1, max_size=12),
        timesteps=st.integers(2, 5),
        units=st.integers(2, 4),
    )
    def test_initial_states_and_paths_equal_keras(self, seed, ids, timesteps, units):
        keras.utils.set_random_seed(seed)
        layer, ids = embedded(10, units), np.array(ids)
        x = 3 * normal(len(ids), timesteps, FEATURES, seed=seed)
        table = to_numpy(layer.h0.encoder.embeddings)
        c = np.full((len(ids), units), 0.25, "float32")
        states = states_step_by_step(layer, x, [table[ids], c])
        same, project, _ = by_covariance(states[1:].reshape(-1, 2 * units))
        assume(same)

        found = in_plane(plot_initial_state(layer, x, context=ids).axes[-1])
        plt.close("all")

        distinct = np.unique(ids)
        start = np.concatenate([table[distinct], c[: len(distinct)]], axis=1)
        close = {"rtol": 0, "atol": 1e-4}
        np.testing.assert_allclose(found["initial_values"], project(start), **close)
        assert found["names"] == [str(value) for value in distinct]
        np.testing.assert_array_equal(found["named at"], found["initial_values"])
        # There is one path of each ID, up to ten, then others, up to five.
        seen, repeated = [], []
        for row, value in enumerate(ids):
            (repeated if value in ids[seen] else seen).append(row)
        rows = (seen + repeated)[: min(10, max(5, len(seen)))]
        assert len(found["paths"]) == len(rows)
        looks = {}
        for row, path, end, look in zip(
            rows, found["paths"], found["ends"], found["looks"], strict=True
        ):
            np.testing.assert_allclose(path, project(states[:, row]), **close)
            np.testing.assert_array_equal(end, path[-1:])
            looks.setdefault(ids[row], set()).add(look)
        # Paths have the same look if and only if they have the same initial state.
        assert sum(map(len, looks.values())) == len(set().union(*looks.values()))
        assert len(set().union(*looks.values())) == len(looks)

    def test_paths_from_one_initial_state_have_the_colours_of_their_timesteps(self):
        layer, x = embedded(2), normal(6, 4, FEATURES)
        for ids in (np.zeros(6, int), np.arange(6) % 2):
            axes = plot_initial_state(layer, x, context=ids).axes[-1]
            paths = in_plane(axes)["paths"]
            if ids.any():
                assert not axes.collections
                continue
            (dots,) = axes.collections
            places = np.array(paths).swapaxes(0, 1).reshape(-1, 2)
            np.testing.assert_allclose(dots.get_offsets(), places, atol=1e-6)
            timesteps = np.repeat(np.arange(5), len(paths))
            np.testing.assert_array_equal(dots.get_array(), timesteps)
            (scale,) = axes.child_axes
            assert scale.get_ylabel() == "timestep"
            plt.close("all")

    def test_equal_states_give_equal_pictures(self):
        layer = layer_with_weights(lstm())
        first, again = (in_plane(plot_initial_state(layer, X).axes[-1]) for _ in "12")
        np.testing.assert_array_equal(first["visited"], again["visited"])
        assert first["legend"] == [
            "initial state",
            f"paths of {BATCH} of {BATCH} sequences",
            "where they end",
            "visited: all",
        ]
        assert len(set(first["looks"])) == 1

    @pytest.mark.parametrize("timesteps", [1, 4])
    def test_one_unit_has_one_component(self, timesteps):
        layer = layer_with_weights(InitStateSimpleRNN(1, initial_state=0.5))
        x = X[:2, :timesteps]
        found = in_plane(plot_initial_state(layer, x).axes[-1])
        assert not found["visited"][:, 1].any()
        np.testing.assert_array_equal(found["shares"], [100, 0])
        still = in_plane(plot_initial_state(layer, x[:1, :1]).axes[-1])
        np.testing.assert_array_equal(still["visited"], [[0, 0]])
        np.testing.assert_array_equal(still["shares"], [0, 0])


class TestContext:
    def test_the_range_of_the_initial_states_of_each_unit(self):
        layer, ids = embedded(5), np.array([4, 1, 4, 0])
        table = to_numpy(layer.h0.encoder.embeddings)[[0, 1, 4]].astype("float64")
        for sequences in (X, None):
            figure = plot_initial_state(layer, sequences, context=ids)
            found = drawn(figure.axes[0])
            np.testing.assert_allclose(
                initial_values(found, "mean initial state"),
                table.mean(axis=0),
                atol=1e-6,
            )
            np.testing.assert_allclose(
                found["range of initial states"],
                [table.min(axis=0), table.max(axis=0)],
                atol=1e-6,
            )
            norms = np.linalg.norm(table, axis=1)
            assert (
                figure.axes[0]
                .get_title("left")
                .startswith(
                    f"h0, Conditional: 3 initial states, L2 norms {norms.min():.3g} to "
                    f"{norms.max():.3g}"
                )
            )
            assert initial_values(drawn(figure.axes[1])) == [0.25] * 3
        in_order = plot_initial_state(layer, X, context=ids, sort=True).axes[0]
        order = table.mean(axis=0).argsort()
        assert [int(t.get_text()) for t in in_order.get_xticklabels()] == list(order)
        np.testing.assert_allclose(
            drawn(in_order)["range of initial states"],
            [table.min(axis=0)[order], table.max(axis=0)[order]],
            atol=1e-6,
        )

    @pytest.mark.parametrize("count", [20, 21])
    def test_few_initial_states_are_labelled_with_their_ids(self, count):
        layer = embedded(count)
        x = normal(count, 2, FEATURES)
        figure = plot_initial_state(layer, x, context=np.arange(count))
        found = in_plane(figure.axes[-1])
        assert len(found["initial_values"]) == count
        assert len(found["paths"]) == 10
        assert len(set(found["looks"])) == 10
        assert any(found["names"]) == (count == 20)

    @pytest.mark.parametrize("go_backwards", [False, True])
    @pytest.mark.parametrize("over_time", [False, True])
    def test_a_context_of_features(self, over_time, go_backwards):
        start = Conditional(keras.layers.Dense(3), over_time=over_time)
        layer = InitStateLSTM(3, initial_state=start, go_backwards=go_backwards)
        features = normal(2, 2)[[0, 1, 0, 1]]
        context = features
        if over_time:
            context = np.zeros((BATCH, TIMESTEPS, 2), "float32")
            context[:, -1 if go_backwards else 0] = features
        layer(X, context=context)
        found = in_plane(plot_initial_state(layer, X, context=context).axes[-1])
        names = {"h0": 0, "c0": 1}
        kernels = [to_numpy(getattr(layer, name).encoder.kernel) for name in names]
        start = [features @ kernel for kernel in kernels]
        x = X[:, ::-1] if go_backwards else X
        states = states_step_by_step(layer, x, start)
        same, project, _ = by_covariance(states[1:].reshape(-1, 6))
        assert same
        assert_same_cloud(found["initial_values"], project(states[0, :2]))
        assert_same_cloud(found["visited"], project(states[1:].reshape(-1, 6)))
        assert found["names"] == ["", ""]

    def test_a_structure_of_contexts(self):
        inputs = [keras.Input((), dtype="int32"), keras.Input((2,))]
        joined = keras.layers.Concatenate()(
            [keras.layers.Embedding(3, 2)(inputs[0]), inputs[1]]
        )
        encoder = keras.Model(inputs, keras.layers.Dense(3)(joined))
        layer = InitStateLSTM(3, initial_state=Conditional(encoder))
        context = [np.array([1, 1, 2, 1]), np.array([[0, 0], [1, 0], [0, 0], [0, 0]])]
        context[1] = context[1].astype("float32")
        layer(X, context=context)
        found = in_plane(plot_initial_state(layer, X, context=context).axes[-1])
        assert len(found["initial_values"]) == 3

    def test_one_encoder_of_all_states(self):
        encoder = keras.layers.LSTM(3, return_state=True)
        layer = InitStateLSTM(3, initial_state=Conditional(encoder))
        past = np.random.default_rng(0).normal(size=(BATCH, 6, 2)).astype("float32")
        layer(X, context=past)
        figure = plot_initial_state(layer, X, context=past)
        for ax, name in zip(figure.axes, ["h0", "c0"], strict=False):
            title = ax.get_title("left")
            assert title.startswith(f"{name}, Conditional: {BATCH} initial states")
        assert len(in_plane(figure.axes[-1])["initial_values"]) == BATCH

    @pytest.mark.parametrize(
        ("context", "message"),
        [
            (None, r"`context` is missing.*\(batch, ...\).*Received: context=None"),
            (np.zeros(BATCH + 1, int), r"`context` must.*\(4, ...\).*Received.*\(5,\)"),
            ("text", "`context` must be.*Received: context='text'"),
        ],
    )
    def test_a_context_that_does_not_fit(self, context, message):
        with pytest.raises(ValueError, match=message):
            plot_initial_state(embedded(5), X, context=context)
        assert not plt.get_fignums()

    def test_a_context_that_is_not_used(self):
        with pytest.raises(ValueError, match="`context` is for a layer with a `Cond"):
            plot_initial_state(layer_with_weights(lstm()), X, context=np.zeros(BATCH))

    def test_an_encoder_that_is_not_built(self):
        start = Conditional(keras.layers.Dense(3))
        layer = InitStateLSTM(3, initial_state=start)
        layer(X, initial_state=[np.zeros((BATCH, 3), "float32")] * 2)
        with pytest.raises(ValueError, match="`layer` must be built"):
            plot_initial_state(layer, X, context=np.zeros((BATCH, 2)))
