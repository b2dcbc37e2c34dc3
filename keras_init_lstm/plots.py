"""Seeing what was learned: a picture of the initial state.

Nothing here changes a layer: no weight, no carried stream, no random stream.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_init_lstm.initial_states import InitialState
from keras_init_lstm.recurrent import InitStateRNN
from keras_init_lstm.validation import described, finite_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# With more, single units can no longer be told apart, and the order says more.
_MOST_UNSORTED = 32


def plot_initial_state(
    layer: InitStateRNN,
    sequences: Any = None,
    mask: Any = None,
    *,
    sort: bool | None = None,
    axes: Any = None,
) -> "Figure":
    """Draws the initial state of a layer against the states that it visits.

    Each state (h0, c0) has axes of its own, with a dot for each unit: where it
    starts; for `Sampled` the mean, with a bar of one `stddev` to either side. Behind
    the dots stands where that unit is after every timestep of `sequences`: the range,
    the 10th to 90th percentile, the median. A dot outside of these percentiles is
    orange. Needs matplotlib: `pip install keras_init_lstm[plot]`.

    Every sequence is run from the owned initial state, as at inference, also with
    `stateful=True`. The layer is left as it was.

    Args:
        layer: A built layer of this package. Of a `Bidirectional`, pass the
            `forward_layer` or the `backward_layer`.
        sequences: Array `(batch, timesteps, features)`, what the layer is called
            with. Inside a model these are not the model's inputs, but what
            `keras.Model(model.inputs, layer.input)` makes of them. Defaults to
            `None`: only the initial state is drawn.
        mask: Boolean array `(batch, timesteps)`, `False` where a timestep is skipped
            and not drawn. Defaults to `None`.
        sort: Whether the units stand in the order of their initial state instead of
            their index. Defaults to `None`: with more than 32 units.
        axes: The matplotlib `Axes` to draw on, one for each state, in a figure with
            `layout="constrained"`, which makes room for the legends. Defaults to
            `None`: a new figure of `matplotlib.pyplot`.

    Returns:
        The matplotlib `Figure` with the axes. It is not shown: call `plt.show()`, or
        its `savefig(path)`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `layer` is not a built layer of this package, or has a state
            that owns no value of shape `(units,)`; if `sequences` or `mask` is of
            another shape, or holds nothing to draw; if `axes` is not one for each
            state.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> x = np.random.normal(size=(8, 10, 3))
    >>> outputs = layer(x)
    >>> figure = keras_init_lstm.plot_initial_state(layer, x)
    >>> len(figure.axes)
    2
    """
    _check_layer(layer)
    names, title = layer.state_names, f"Where {layer.name} starts"
    visited: list[np.ndarray | None] = [None] * len(names)
    if sequences is not None:
        sequences, mask = _checked_data(layer, sequences, mask)
        title += f", and where it is after each of {mask.sum()} timesteps"
    if axes is None:
        axes = _new_axes(len(names), title)
    axes = np.ravel(np.asarray(axes, "object"))
    if len(axes) != len(names):
        raise ValueError(
            f"Argument `axes` must be {len(names)} matplotlib Axes, for "
            f"{', '.join(names)}. Received: {len(axes)}"
        )
    if sequences is not None:
        visited = list(_visited_states(layer, sequences, mask))
    for ax, name, kind, units, visits in zip(
        axes, names, layer.initial_state, layer.state_units, visited, strict=True
    ):
        in_order = units > _MOST_UNSORTED if sort is None else sort
        _draw(ax, name, kind, units, visits, in_order)
    return axes[0].figure


def _check_layer(layer: Any) -> None:
    if not isinstance(layer, InitStateRNN):
        hint = ""
        if isinstance(layer, keras.layers.Bidirectional):
            hint = " Pass its `forward_layer` or its `backward_layer`."
        raise ValueError(
            "Argument `layer` must be a recurrent layer of keras_init_lstm, such as "
            f"`InitStateLSTM`. Received: {described(layer)}.{hint}"
        )
    if not layer.built:
        raise ValueError(
            "Argument `layer` must be built, since before that there is no initial "
            f"state: call {layer.name} or its model first. Received: {layer}"
        )
    for name, kind in zip(layer.state_names, layer.initial_state, strict=True):
        if kind is not None and getattr(kind, "value", None) is None:
            raise ValueError(
                "Argument `layer` must own one value for each unit, which is the same "
                f"for every sequence. Received: {layer} with {name} from {kind}"
            )


def _checked_data(
    layer: InitStateRNN, sequences: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
    sequences = finite_array(sequences, "sequences", layer.compute_dtype)
    features = layer.cell.get_build_config()["input_shape"][-1]
    if sequences.ndim != 3 or sequences.shape[2] != features or not sequences.size:
        raise ValueError(
            "Argument `sequences` must be an array `(batch, timesteps, features)` with "
            f"{features} features, and not empty: what {layer.name} is called with. "
            f"Received: an array of shape {sequences.shape}"
        )
    expected = sequences.shape[:2]
    mask = np.ones(expected, bool) if mask is None else np.asarray(mask).astype(bool)
    if mask.shape != expected or not mask.any():
        raise ValueError(
            f"Argument `mask` must be an array `(batch, timesteps)` = {expected} that "
            f"is True somewhere. Received: an array of shape {mask.shape}, True in "
            f"{mask.sum()} places"
        )
    return sequences, mask


def _visited_states(
    layer: InitStateRNN, sequences: np.ndarray, mask: np.ndarray
) -> Iterator[np.ndarray]:
    """Yields for each state where it is after every timestep: `(visits, units)`.

    The layer itself returns only the last c, so its cell is run step by step.
    """
    steps = range(sequences.shape[1])
    visited = []
    # What is drawn at random in this scope leaves the layer's random streams alone.
    with keras.StatelessScope():
        states = keras.tree.flatten(layer.get_initial_state(len(sequences)))
        for step in reversed(steps) if layer.go_backwards else steps:
            before = keras.tree.pack_sequence_as(layer.state_size, states)
            _, after = layer.cell(sequences[:, step], before, training=False)
            read = mask[:, step]
            states = [
                keras.ops.where(read[:, None], new, old)
                for new, old in zip(keras.tree.flatten(after), states, strict=True)
            ]
            visited.append([_array(state)[read] for state in states])
    for state in zip(*visited, strict=True):
        yield np.concatenate(state)


def _new_axes(number: int, title: str) -> Any:
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_initial_state needs matplotlib: pip install keras_init_lstm[plot]"
        ) from error
    size = (9, 0.8 + 2.6 * number)
    figure, axes = plt.subplots(number, figsize=size, layout="constrained")
    figure.suptitle(title)
    return axes


def _draw(
    ax: "Axes",
    name: str,
    kind: InitialState | None,
    units: int,
    visits: np.ndarray | None,
    in_order: bool,
) -> None:
    start = np.zeros(units) if kind is None else _array(kind.value)
    norm, named = np.linalg.norm(start), type(kind).__name__ if kind else "not owned"
    title = f"{name}, {named}: " + (f"L2 norm {norm:.3g}" if norm else "at zero")
    inside, spread = np.ones(units, bool), None
    if visits is not None:
        spread = np.percentile(visits, [0, 10, 50, 90, 100], axis=0)
        inside = (spread[1] <= start) & (start <= spread[3])
        title += f"; {inside.sum()} of {units} units start within 10 to 90 %"
    at = np.arange(units)
    order = at
    if in_order:
        order = np.lexsort((start if spread is None else spread[2], start))
    start, inside = start[order], inside[order]
    width, size = (0.8, 6) if units <= _MOST_UNSORTED else (1.0, 3)
    legend: list[Any] = []
    ax.use_sticky_edges = False  # With them the lowest bar would end in the frame.

    def bars(low: np.ndarray, high: np.ndarray, color: str, label: str) -> None:
        legend.append(ax.bar(at, high - low, width, low, color=color, label=label))

    def dots(where: np.ndarray, color: str, label: str) -> None:
        if where.any():
            legend.extend(
                ax.plot(at[where], start[where], "o", ms=size, color=color, label=label)
            )

    if spread is not None:
        least, low, median, high, most = spread[:, order]
        bars(least, most, "#deebf7", "visited: all")
        bars(low, high, "#9ecae1", "visited: 10 to 90 %")
        left, right = at - width / 2, at + width / 2
        lines = ax.hlines(median, left, right, "#3182bd", label="visited: median")
        legend.append(lines)
    what = "initial state"
    spread_of_draws = getattr(kind, "stddev", None)
    if spread_of_draws is not None:
        what = "mean"
        stddev = _array(spread_of_draws)[order]
        error = ax.errorbar(
            at, start, stddev, fmt="none", ecolor="0.4", lw=size / 4, label="± stddev"
        )
        legend.append(error)
    dots(~inside, "#d95f02", f"{what}, outside 10 to 90 %")
    dots(inside, "black", what)

    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    every = -(-units // 16)
    ax.set_xticks(at[::every], order[::every])
    ax.set_xlim(-0.6, units - 0.4)
    ax.set_xlabel("unit, in the order of the initial state" if in_order else "unit")
    ax.set_ylabel("value of the state")
    ax.set_title(title, loc="left", fontsize="medium")
    ax.legend(
        handles=legend[::-1],
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize="small",
    )


def _array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor).astype("float64")
