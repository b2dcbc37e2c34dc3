"""Plots the initial state of a layer.

A plot does not change the layer: no weight, no carried state, no random stream.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_init_lstm._checks import described, finite_array, shape_of
from keras_init_lstm.layers._call import lists_as_arrays
from keras_init_lstm.layers.rnn import InitStateRNN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["plot_initial_state"]

# With more units, a reader can't see single units, and sorted units show more.
_MOST_UNSORTED = 32
# With more paths or names, a reader can't follow single ones.
_LEAST_PATHS, _MOST_PATHS = 5, 10
_MOST_NAMES = 20
# The colours of Okabe and Ito, which colour-blind readers can distinguish.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_PATH_COLOR = "0.3"


def plot_initial_state(
    layer: InitStateRNN,
    sequences: Any = None,
    mask: Any = None,
    *,
    context: Any = None,
    sort: bool | None = None,
    axes: Any = None,
) -> "Figure":
    """Draws the initial state of a layer among the states that it visits.

    Each state (h0, c0) has its own axes. A dot for each unit shows its initial state:
    for `Sampled` the mean, with a bar of one `stddev` in both directions; for
    `Conditional` the mean over all distinct rows of `context`, with a bar from the
    smallest to the largest value. Behind the dots, bars show the values of the unit
    after every timestep of `sequences`: the range, the 10th to 90th percentile, and the
    median. A dot outside of these percentiles is orange.

    With `sequences`, the last axes show the plane of the first two principal components
    of all visited states, for an LSTM the vectors `[h, c]`. A grey dot is a visited
    state. Lines are the paths of a few sequences (one from each initial state, but at
    least five and at most ten). If all have the same initial state, the colours of
    their states tell the timestep. The initial states are black, for `Conditional` one
    for each distinct row of `context`. The axis labels tell how much of the variance
    each component holds. Distances from the plane are not visible.

    The layer reads every sequence from the owned initial state, as at inference, even
    with `stateful=True`. It is left unchanged. The plot needs matplotlib:
    `pip install matplotlib`.

    Args:
        layer: A built layer of this package. Of a `Bidirectional`, pass the
            `forward_layer` or the `backward_layer`.
        sequences: Array `(batch, timesteps, features)`, the inputs of the layer. Inside
            a model, `keras.Model(model.inputs, layer.input)` computes them from the
            inputs of the model. Defaults to `None`: only the initial state is drawn.
        mask: Boolean array `(batch, timesteps)`, `False` where a timestep is skipped
            and not drawn. Defaults to `None`.
        context: The context from which a `Conditional` state is computed, as at a call:
            an array `(batch, ...)`, or a structure of arrays. If it is an array
            `(batch,)` of up to 20 distinct IDs, each initial state is labelled with its
            ID. Defaults to `None`.
        sort: Whether to sort the units by their initial state instead of their index.
            Defaults to `None`, which sorts more than 32 units.
        axes: The matplotlib `Axes` to draw on: one for each state, and optionally one
            more for the plane. Use a figure with `layout="constrained"`, which makes
            room for the legends. Defaults to `None`: a new figure of
            `matplotlib.pyplot`.

    Returns:
        The matplotlib `Figure` with the axes. It is not shown: call `plt.show()`, or
        its `savefig(path)`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `layer` is not a built layer of this package, or is a ConvLSTM;
            if it has a state without a value of shape `(units,)` that is not
            `Conditional`; if `sequences`, `mask` or `context` has another shape or
            nothing to draw; if `context` is missing for a `Conditional` state, or is
            given to a layer without one; or if the number of `axes` is wrong.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> x = np.random.normal(size=(8, 10, 3))
    >>> outputs = layer(x)
    >>> figure = keras_init_lstm.plots.plot_initial_state(layer, x)
    >>> len(figure.axes)  # h0, c0, and the plane
    3

    >>> conditional = keras_init_lstm.Conditional(keras.layers.Embedding(10, 4))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=conditional)
    >>> digits = np.arange(8)
    >>> outputs = layer(x, context=digits)
    >>> figure = keras_init_lstm.plots.plot_initial_state(layer, x, context=digits)
    """
    _check_layer(layer)
    names, title = layer.state_names, f"Initial states of {layer.name}"
    context = lists_as_arrays(context)
    batch_size, timesteps = _rows_of(context), None
    if sequences is not None:
        sequences, mask = _checked_data(layer, sequences, mask)
        batch_size, timesteps = sequences.shape[:2]
        title += f", and its states after each of {mask.sum()} timesteps"
    layer._owned.check_context(context, batch_size, timesteps, None, layer.name)
    plane = int(sequences is not None)
    if axes is None:
        axes = _new_axes(len(names), plane, title)
    axes = np.ravel(np.asarray(axes, "object"))
    if len(axes) not in (len(names), len(names) + plane):
        more = " (and one for the plane)" if plane else ""
        raise ValueError(
            f"Argument `axes` must be {len(names)} matplotlib Axes, for "
            f"{', '.join(names)}{more}. Received: {len(axes)}"
        )
    first, group = _distinct_rows(context, batch_size)
    # In this scope, a draw does not advance the seed generators of the layer.
    with keras.StatelessScope():
        initial_states = _initial_states(layer, batch_size, context, first)
        visits: list[Any] = [None] * len(names)
        if plane:
            paths, read = _run(layer, sequences, mask, context)
            ends = np.cumsum(layer.state_units)[:-1]
            visits = list(np.split(paths[1:][read], ends, axis=1))
    for index, ax in enumerate(axes[: len(names)]):
        _draw_units(ax, layer, index, initial_states[index], visits[index], sort)
    if len(axes) > len(names):
        points = [np.broadcast_to(s, (len(first), s.shape[1])) for s in initial_states]
        _draw_plane(
            axes[-1],
            " and ".join(names),
            (np.concatenate(points, axis=1), _labels(context, first)),
            paths,
            read,
            (first, group),
        )
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
    if any(len(state.shape) > 1 for state in layer._layout.states):
        raise ValueError(
            "Argument `layer` must have states `(batch, units)`, not a ConvLSTM. "
            f"Received: {described(layer)}"
        )
    kinds = layer.initial_state
    if not layer.built or not all(kind is None or kind.built for kind in kinds):
        raise ValueError(
            "Argument `layer` must be built, because an unbuilt layer has no initial "
            f"state: call {layer.name} or its model first. Received: {layer}"
        )
    for name, kind in zip(layer.state_names, kinds, strict=True):
        needs_no_value = kind is None or kind.takes_context
        if not needs_no_value and getattr(kind, "value", None) is None:
            raise ValueError(
                "Argument `layer` must own one value for each unit, which all "
                "sequences share, or compute its initial state from a context. "
                f"Received: {layer} with {name} from {kind}"
            )


def _checked_data(
    layer: InitStateRNN, sequences: Any, mask: Any
) -> tuple[np.ndarray, np.ndarray]:
    sequences = finite_array(sequences, "sequences", layer.compute_dtype)
    features = layer.cell.get_build_config()["input_shape"][-1]
    if sequences.ndim != 3 or sequences.shape[2] != features or not sequences.size:
        raise ValueError(
            "Argument `sequences` must be an array `(batch, timesteps, features)` with "
            f"{features} features, not empty, as {layer.name} takes it. "
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


def _rows_of(context: Any) -> int:
    """Returns the batch size of a context, 1 without a context."""
    shapes = [shape_of(leaf) for leaf in keras.tree.flatten(context)]
    return next((shape[0] or 1 for shape in shapes if shape), 1)


def _distinct_rows(context: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the index of the first row of each distinct context, and the groups.

    The groups are an array `(batch,)`: for each row, the number of its context.
    """
    codes = [np.zeros(batch_size, int)]
    for leaf in keras.tree.flatten(context):
        if leaf is not None and shape_of(leaf):
            rows = np.reshape(keras.ops.convert_to_numpy(leaf), (batch_size, -1))
            codes.append(np.unique(rows, axis=0, return_inverse=True)[1].ravel())
    _, first, group = np.unique(
        np.stack(codes, axis=1), axis=0, return_index=True, return_inverse=True
    )
    return first, group.ravel()


def _labels(context: Any, rows: np.ndarray) -> list[str]:
    """Returns the labels of initial states: IDs if these are few, else empty texts."""
    leaves = keras.tree.flatten(context)
    if (
        len(rows) > _MOST_NAMES
        or len(leaves) != 1
        or len(shape_of(leaves[0]) or ()) != 1
    ):
        return [""] * len(rows)
    return [str(value) for value in keras.ops.convert_to_numpy(leaves[0])[rows]]


def _initial_states(
    layer: InitStateRNN, batch_size: int, context: Any, rows: np.ndarray
) -> list[np.ndarray]:
    """Returns the values to draw of each state: one row, or these rows of a batch."""
    kinds = layer.initial_state
    computed: list[Any] = [None] * len(kinds)
    if context is not None:
        computed = keras.tree.flatten(
            layer.get_initial_state(batch_size, context=context)
        )
    return [
        _array(layer._owned.preview(index, 1))
        if kind is None or not kind.takes_context
        else _array(computed[index])[rows]
        for index, kind in enumerate(kinds)
    ]


def _run(
    layer: InitStateRNN, sequences: np.ndarray, mask: np.ndarray, context: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all states `(1 + timesteps, batch, units)`, and the mask.

    The first states are the initial states. The others, and the mask
    `(timesteps, batch)`, are in the order in which the layer reads the timesteps.
    """
    first = layer.get_initial_state(len(sequences), context=context)
    after = layer.states_over_time(sequences, mask, context=context)
    first, after = (
        np.concatenate(list(map(_array, keras.tree.flatten(states))), axis=-1)
        for states in (first, after)
    )
    paths = np.concatenate([first[:, None], after], axis=1).swapaxes(0, 1)
    return paths, mask.T[:: -1 if layer.go_backwards else 1]


def _new_axes(number: int, plane: int, title: str) -> Any:
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_initial_state needs matplotlib: pip install matplotlib"
        ) from error
    heights = [2.6] * number + [4.4] * plane
    figure, axes = plt.subplots(
        len(heights),
        figsize=(9, 0.8 + sum(heights)),
        height_ratios=heights,
        layout="constrained",
    )
    figure.suptitle(title)
    return axes


def _draw_units(
    ax: "Axes",
    layer: InitStateRNN,
    index: int,
    initial_states: np.ndarray,
    visits: np.ndarray | None,
    sort: bool | None,
) -> None:
    kind, units = layer.initial_state[index], layer.state_units[index]
    in_order = units > _MOST_UNSORTED if sort is None else sort
    mean = initial_states.mean(axis=0)
    norms = np.linalg.norm(initial_states, axis=1)
    is_computed = kind is not None and kind.takes_context
    title = (
        f"{layer.state_names[index]}, {type(kind).__name__ if kind else 'not owned'}: "
    )
    if is_computed:
        title += (
            f"{len(initial_states)} initial states, L2 norms {norms.min():.3g} to "
            f"{norms.max():.3g}"
        )
    else:
        title += f"L2 norm {norms[0]:.3g}" if norms[0] else "at zero"
    inside, spread = np.ones(units, bool), None
    if visits is not None:
        spread = np.percentile(visits, [0, 10, 50, 90, 100], axis=0)
        inside = (spread[1] <= mean) & (mean <= spread[3])
        subject = "means are" if is_computed else "units start"
        title += f"; {inside.sum()} of {units} {subject} within 10 to 90 %"
    at = np.arange(units)
    order = at
    if in_order:
        order = np.lexsort((mean if spread is None else spread[2], mean))
    heights, inside = mean[order], inside[order]
    width, size = (0.8, 6) if units <= _MOST_UNSORTED else (1.0, 3)
    legend: list[Any] = []
    ax.use_sticky_edges = False  # The lowest bar must not end at the frame.

    def bars(low: np.ndarray, high: np.ndarray, color: str, label: str) -> None:
        legend.append(ax.bar(at, high - low, width, low, color=color, label=label))

    def error_bars(below: np.ndarray, above: np.ndarray, label: str) -> None:
        error = ax.errorbar(
            at,
            heights,
            (below[order], above[order]),
            fmt="none",
            ecolor="0.4",
            lw=size / 4,
            label=label,
        )
        legend.append(error)

    def dots(where: np.ndarray, color: str, label: str) -> None:
        if where.any():
            x, y = at[where], heights[where]
            legend.extend(ax.plot(x, y, "o", ms=size, color=color, label=label))

    if spread is not None:
        least, low, median, high, most = spread[:, order]
        bars(least, most, "#deebf7", "visited: all")
        bars(low, high, "#9ecae1", "visited: 10 to 90 %")
        left, right = at - width / 2, at + width / 2
        lines = ax.hlines(median, left, right, "#3182bd", label="visited: median")
        legend.append(lines)
    label = "initial state"
    stddev = getattr(kind, "stddev", None)
    if is_computed:
        label = "mean initial state"
        below = mean - initial_states.min(axis=0)
        above = initial_states.max(axis=0) - mean
        error_bars(below, above, "range of initial states")
    elif stddev is not None:
        label = "mean"
        error_bars(_array(stddev), _array(stddev), "± stddev")
    dots(~inside, "#d95f02", f"{label}, outside 10 to 90 %")
    dots(inside, "black", label)

    ax.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    every = -(-units // 16)
    ax.set_xticks(at[::every], order[::every])
    ax.set_xlim(-0.6, units - 0.4)
    ax.set_xlabel("unit, in the order of the initial state" if in_order else "unit")
    ax.set_ylabel("value of the state")
    ax.set_title(title, loc="left", fontsize="medium")
    _add_legend(ax, legend[::-1])


def _draw_plane(
    ax: "Axes",
    name: str,
    initial_states: tuple[np.ndarray, list[str]],
    paths: np.ndarray,
    read: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
) -> None:
    """Draws the plane of the first two principal components of the visited states.

    Args:
        ax: The axes.
        name: The names of the states.
        initial_states: The distinct initial states, an array `(count, units)`, and the
            label of each.
        paths: All states `(1 + timesteps, batch, units)`. The first are the initial
            states.
        read: Boolean array `(timesteps, batch)`.
        groups: The two arrays of `_distinct_rows()`.
    """
    visits = paths[1:][read]
    center = visits.mean(axis=0)
    components, shares = _principal_components(visits - center)

    def project(states: np.ndarray) -> np.ndarray:
        return ((states - center) @ components.T).T

    from matplotlib import patheffects
    from matplotlib.lines import Line2D

    (points, labels), (first, group) = initial_states, groups
    (dots,) = ax.plot(
        *project(visits), ".", ms=3, color="0.65", mec="none", label="visited: all"
    )
    dots.set_rasterized(True)
    # Draw one path from each initial state, then others.
    others = np.setdiff1d(np.arange(paths.shape[1]), first)
    count = np.clip(len(first), _LEAST_PATHS, _MOST_PATHS)
    chosen = np.concatenate([np.sort(first), others])[:count]
    ended: dict[str, Any] = {"marker": "s", "ms": 5, "mfc": "white"}
    is_one = len(points) == 1
    for row in chosen:
        style, color = divmod(group[row], len(_COLORS))
        dash = ("-", "--")[style % 2]
        look: dict[str, Any] = {"color": _COLORS[color], "ls": dash, "lw": 1}
        if is_one:
            look = {"color": _PATH_COLOR, "lw": 1}
        x, y = project(paths[:, row])
        ax.plot(x, y, **look)
        ax.plot(x[-1:], y[-1:], **ended, **look)
    if is_one:
        _draw_times(ax, project(paths[:, chosen].reshape(-1, paths.shape[2])), paths)
    (start,) = ax.plot(
        *project(points),
        "o",
        ms=7,
        color="black",
        mec="white",
        label=f"initial states: {len(points)}" if len(points) > 1 else "initial state",
    )
    for x, y, text in zip(*project(points), labels, strict=True):
        ax.annotate(
            text,
            (x, y),
            (5, 4),
            textcoords="offset points",
            weight="bold",
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )
    for axis, share, number in zip((ax.xaxis, ax.yaxis), shares, (1, 2), strict=True):
        axis.set_label_text(f"component {number} ({100 * share:.0f} % of the variance)")
    ax.set_aspect("equal", "datalim")
    ax.set_title(
        f"{name}, in the plane of their first two principal components",
        loc="left",
        fontsize="medium",
    )
    label = f"paths of {len(chosen)} of {paths.shape[1]} sequences"
    look = {"color": _PATH_COLOR, "lw": 1}
    path = Line2D([], [], label=label, **look)
    last = Line2D([], [], label="where they end", **ended, **{**look, "ls": ""})
    _add_legend(ax, [start, path, last, dots])


def _draw_times(ax: "Axes", places: np.ndarray, paths: np.ndarray) -> None:
    """Colours the states of some paths by their timestep, with a scale.

    Args:
        ax: The axes.
        places: The places of the states `(2, (1 + timesteps) * rows)`.
        paths: The states `(1 + timesteps, batch, units)`.
    """
    rows = places.shape[1] // len(paths)
    timesteps = np.repeat(np.arange(len(paths)), rows)
    x, y = places
    dots = ax.scatter(x, y, s=14, c=timesteps, cmap="viridis", zorder=2.5)
    scale = ax.inset_axes((1.03, 0.04, 0.03, 0.5))
    ax.figure.colorbar(dots, cax=scale, label="timestep")


def _principal_components(centered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first two components `(2, units)`, and their shares of the variance.

    The largest entry of each component is positive: equal states give equal pictures.
    If there is only one component, the second is zero.
    """
    _, lengths, components = np.linalg.svd(centered, full_matrices=False)
    largest = np.abs(components).argmax(axis=1)[:, None]
    components *= np.where(np.take_along_axis(components, largest, 1) < 0, -1, 1)
    variances = lengths**2
    shares = variances / (variances.sum() or 1.0)
    missing = max(0, 2 - len(shares))
    return np.pad(components, [(0, missing), (0, 0)])[:2], np.pad(shares, (0, missing))[
        :2
    ]


def _add_legend(ax: "Axes", handles: Sequence[Any]) -> None:
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        frameon=False,
        fontsize="small",
    )


def _array(tensor: Any) -> np.ndarray:
    return keras.ops.convert_to_numpy(tensor).astype("float64")
