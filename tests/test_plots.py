"""Pictures of initial states: what stands in them, and what they are drawn from."""

import re
import sys

import keras
import matplotlib
import numpy as np
import pytest

from backends import FLOAT64
from keras_init_lstm import (
    Fixed,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
    Sampled,
    Trainable,
    plot_initial_state,
)
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
    """The states after every timestep: of Keras's own loop, run up to each in turn."""
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
    """What stands in the axes: arrays by the labels of the legend."""
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


def starts(found, what="initial state"):
    """The dots, of either colour, in the order in which they stand."""
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
    def test_the_visited_states_are_those_of_keras(
        self, kind, dtype, go_backwards, mask
    ):
        x, mask = X, MASKS[mask]
        layer = MAKERS[kind](dtype=dtype, go_backwards=go_backwards)
        layer.build(x.shape)
        figure = plot_initial_state(layer, x, mask)
        visited = visited_by_prefixes(layer, x, mask)
        assert len(figure.axes) == len(visited) == len(layer.state_names)
        for ax, value, visits in zip(
            figure.axes, owned_values(layer), visited, strict=True
        ):
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
            np.testing.assert_allclose(starts(found), value.astype("float64"))
        count = BATCH * TIMESTEPS if mask is None else mask.sum()
        assert f"{layer.name} starts" in figure.get_suptitle()
        assert f"each of {count} timesteps" in figure.get_suptitle()

    def test_a_start_outside_of_what_is_visited_stands_out(self):
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

    def test_a_sampled_state_is_its_mean_and_stddev(self):
        mean, stddev = [0.1, -0.2, 3.0], [0.1, 0.0, 0.5]
        layer = InitStateLSTM(3, initial_state=[Sampled(mean, stddev), None])
        for sequences in (X, None):
            figure = plot_initial_state(layer_with_weights(layer), sequences)
            found = drawn(figure.axes[0])
            np.testing.assert_allclose(starts(found, "mean"), mean)
            np.testing.assert_allclose(
                found["± stddev"],
                [np.subtract(mean, stddev), np.add(mean, stddev)],
                atol=1e-6,
            )
            assert figure.axes[0].get_title("left").startswith("h0, Sampled: L2 norm 3")
            assert figure.axes[1].get_title("left").startswith("c0, not owned: at zero")
            assert starts(drawn(figure.axes[1])) == [0, 0, 0]

    def test_without_sequences_there_is_the_start_alone(self):
        layer = InitStateLSTM(3, initial_state=[Trainable(), [1.0, 2.0, 3.0]])
        layer.build((None, None, FEATURES))
        figure = plot_initial_state(layer)
        assert drawn(figure.axes[0]) == {"initial state": {0: 0, 1: 0, 2: 0}}
        assert drawn(figure.axes[1]) == {"initial state": {0: 1, 1: 2, 2: 3}}
        assert figure.axes[0].get_title("left") == "h0, Trainable: at zero"
        assert figure.axes[1].get_title("left") == "c0, Fixed: L2 norm 3.74"
        assert figure.get_suptitle() == f"Where {layer.name} starts"

    def test_units_in_the_order_of_their_start(self):
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
                starts(found, what), np.array(starts(want, what))[order]
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
            assert starts(found, what) == sorted(starts(found, what))
            # Units that start alike stand in the order of their medians.
            alike = np.array(starts(found, what)) == starts(found, what)[0]
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
                got, value = starts(drawn(ax)), to_numpy(layer.h0.value)
                is_sorted = sort is None and units == 33
                assert_same(
                    [np.array(got)],
                    [(np.sort(value) if is_sorted else value).astype("float64")],
                )
                assert len(ax.get_xticks()) <= 16

    def test_given_axes(self):
        layer = layer_with_weights(lstm())
        figure = matplotlib.figure.Figure(layout="constrained")
        axes = figure.subplots(1, 2)
        assert plot_initial_state(layer, X, axes=axes) is figure
        assert not plt.get_fignums()
        assert all("visited: median" in drawn(ax) for ax in axes)
        assert not figure.get_suptitle()
        single = MAKERS["GRU"]()
        single.build((None, None, FEATURES))
        assert plot_initial_state(single, axes=axes[0]) is figure
        with pytest.raises(ValueError, match="`axes` must be 2.*h0, c0. Received: 1"):
            plot_initial_state(layer, axes=axes[0])

    def test_it_leaves_the_layer_as_it_was(self):
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
    def test_other_layers_are_refused(self, not_a_layer):
        with pytest.raises(ValueError, match="`layer` must be a recurrent layer of k"):
            plot_initial_state(not_a_layer)

    def test_a_layer_must_be_built(self):
        with pytest.raises(ValueError, match="`layer` must be built"):
            plot_initial_state(lstm(), X)

    def test_a_state_without_a_value_is_refused(self):
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
    def test_data_of_another_shape_is_refused(self, shape, mask):
        message = rf"`sequences` must.*\(batch, timesteps, features\).*{FEATURES} feat"
        if mask is not None:
            message = r"`mask` must.*\(batch, timesteps\)` = \(2, 3\)"
        received = re.escape(str(shape if mask is None else mask.shape))
        with pytest.raises(ValueError, match=f"{message}.*Received.*{received}"):
            plot_initial_state(layer_with_weights(lstm()), np.zeros(shape), mask)

    @pytest.mark.parametrize("sequences", ["text", [[[np.nan, 0.0]]], object()])
    def test_data_that_are_no_finite_numbers_are_refused(self, sequences):
        with pytest.raises(ValueError, match="`sequences` must be.*Received"):
            plot_initial_state(layer_with_weights(lstm()), sequences)

    def test_without_matplotlib(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(
            ImportError, match=r"pip install keras_init_lstm\[plot\]"
        ) as error:
            plot_initial_state(layer_with_weights(lstm()), X)
        assert isinstance(error.value.__cause__, ImportError)
