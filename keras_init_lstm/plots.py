"""Seeing what was learned: a picture of the initial state.

Nothing here changes a layer: no weight, no carried stream, no random stream.
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

# With more, single units can no longer be told apart, and the order says more.
_MOST_UNSORTED = 32
# With more, single paths can no longer be followed, nor single starts be named.
_LEAST_PATHS, _MOST_PATHS = 5, 10
_MOST_NAMES = 20
# The colours of Okabe and Ito, which colour-blind readers tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


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

    Each state (h0, c0) has axes of its own, with a dot for each unit: where it
    starts; for `Sampled` the mean, with a bar of one `stddev` to either side; for
    `Conditional` the mean of the starts of all distinct rows of `context`, with a bar
    from the least to the greatest. Behind the dots stands where that unit is after
    every timestep of `sequences`: the range, the 10th to 90th percentile, the median.
    A dot outside of these percentiles is orange.

    Below, with `sequences`, is the plane of the first two principal components of all
    visited states, for an LSTM the vectors `[h, c]`: a grey dot for each, the paths
    of a few sequences (one from each initial state, but at least five and at most ten),
    and their initial states in black, for `Conditional` one for each distinct row of
    `context`.
    The axes say how much of the variance each component holds; what lies off the plane
    is not seen. Needs matplotlib: `pip install keras_init_lstm[plot]`.

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
        context: What a `Conditional` state is computed from, as at a call: an array
            `(batch, ...)`, or a structure of them. Of up to 20 distinct ids, an array
            `(batch,)`, each start bears its own. Defaults to `None`.
        sort: Whether the units stand in the order of their initial state instead of
            their index. Defaults to `None`: with more than 32 units.
        axes: The matplotlib `Axes` to draw on, one for each state, and if there is one
            more, that for the plane, in a figure with `layout="constrained"`, which
            makes room for the legends. Defaults to `None`: a new figure of
            `matplotlib.pyplot`.

    Returns:
        The matplotlib `Figure` with the axes. It is not shown: call `plt.show()`, or
        its `savefig(path)`.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If `layer` is not a built layer of this package, or has a state
            that owns no value of shape `(units,)` and is not `Conditional`; if
            `sequences`, `mask` or `context` is of another shape, or holds nothing to
            draw; if `context` is missing for a `Conditional` state, or is given to a
            layer without one; if `axes` is not one for each state, or one more.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> x = np.random.normal(size=(8, 10, 3))
    >>> outputs = layer(x)
    >>> figure = keras_init_lstm.plots.plot_initial_state(layer, x)
    >>> len(figure.axes)  # h0, c0, and the plane
    3

    >>> start = keras_init_lstm.Conditional(keras.layers.Embedding(10, 4))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=start)
    >>> digits = np.arange(8)
    >>> outputs = layer(x, context=digits)
    >>> figure = keras_init_lstm.plots.plot_initial_state(layer, x, context=digits)
    """
    _check_layer(layer)
    names, title = layer.state_names, f"Where {layer.name} starts"
    context = lists_as_arrays(context)
    rows = _rows_of(context), None
    if sequences is not None:
        sequences, mask = _checked_data(layer, sequences, mask)
        rows = sequences.shape[:2]
        title += f", and where it is after each of {mask.sum()} timesteps"
    layer._owned.check_context(context, rows, None, layer.name)
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
    first, group = _distinct_rows(context, rows[0])
    # What is drawn at random in this scope leaves the layer's random streams alone.
    with keras.StatelessScope():
        starts = _starts(layer, rows[0], context, first)
        visits: list[Any] = [None] * len(names)
        if plane:
            paths, read = _run(layer, sequences, mask, context)
            ends = np.cumsum(layer.state_units)[:-1]
            visits = list(np.split(paths[1:][read], ends, axis=1))
    for index, ax in enumerate(axes[: len(names)]):
        _draw_units(ax, layer, index, starts[index], visits[index], sort)
    if len(axes) > len(names):
        points = [np.broadcast_to(s, (len(first), s.shape[1])) for s in starts]
        _draw_plane(
            axes[-1],
            " and ".join(names),
            (np.concatenate(points, axis=1), _ids(context, first)),
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
    kinds = layer.initial_state
    if not layer.built or not all(kind is None or kind.built for kind in kinds):
        raise ValueError(
            "Argument `layer` must be built, since before that there is no initial "
            f"state: call {layer.name} or its model first. Received: {layer}"
        )
    for name, kind in zip(layer.state_names, kinds, strict=True):
        owned = kind is None or kind.takes_context
        if not owned and getattr(kind, "value", None) is None:
            raise ValueError(
                "Argument `layer` must own one value for each unit, which is the same "
                "for every sequence, or compute it from a context. "
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


def _rows_of(context: Any) -> int:
    """The number of rows of a context, and 1 without one."""
    shapes = [shape_of(leaf) for leaf in keras.tree.flatten(context)]
    return next((shape[0] or 1 for shape in shapes if shape), 1)


def _distinct_rows(context: Any, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each distinct row of a context is first, and which of these a row is."""
    codes = [np.zeros(batch_size, int)]
    for leaf in keras.tree.flatten(context):
        if leaf is not None and shape_of(leaf):
            rows = np.reshape(keras.ops.convert_to_numpy(leaf), (batch_size, -1))
            codes.append(np.unique(rows, axis=0, return_inverse=True)[1].ravel())
    _, first, group = np.unique(
        np.stack(codes, axis=1), axis=0, return_index=True, return_inverse=True
    )
    return first, group.ravel()


def _ids(context: Any, rows: np.ndarray) -> list[str]:
    """What the starts of these rows are called: nothing, unless they are few ids."""
    leaves = keras.tree.flatten(context)
    if (
        len(rows) > _MOST_NAMES
        or len(leaves) != 1
        or len(shape_of(leaves[0]) or ()) != 1
    ):
        return [""] * len(rows)
    return [str(value) for value in keras.ops.convert_to_numpy(leaves[0])[rows]]


def _starts(
    layer: InitStateRNN, batch_size: int, context: Any, rows: np.ndarray
) -> list[np.ndarray]:
    """For each state the initial values to draw: one row, or the rows of a batch."""
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
    """Returns all states `(1 + timesteps, batch, units)`, and which were read.

    The first are what the rows start from, the others stand in the order in which the
    timesteps are read, as does the mask `(timesteps, batch)`. The layer itself returns
    only the last c, so its cell is run step by step.
    """
    backwards = slice(None, None, -1 if layer.go_backwards else 1)
    states = keras.tree.flatten(
        layer.get_initial_state(len(sequences), context=context)
    )
    found = [states]
    for x, read in zip(
        sequences.swapaxes(0, 1)[backwards], mask.T[backwards], strict=True
    ):
        before = keras.tree.pack_sequence_as(layer.state_size, states)
        _, after = layer.cell(x, before, training=False)
        states = [
            keras.ops.where(read[:, None], new, old)
            for new, old in zip(keras.tree.flatten(after), states, strict=True)
        ]
        found.append(states)
    joined = [np.concatenate(list(map(_array, each)), axis=1) for each in found]
    return np.stack(joined), mask.T[backwards]


def _new_axes(number: int, plane: int, title: str) -> Any:
    try:
        from matplotlib import pyplot as plt
    except ImportError as error:
        raise ImportError(
            "plot_initial_state needs matplotlib: pip install keras_init_lstm[plot]"
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
    starts: np.ndarray,
    visits: np.ndarray | None,
    sort: bool | None,
) -> None:
    kind, units = layer.initial_state[index], layer.state_units[index]
    in_order = units > _MOST_UNSORTED if sort is None else sort
    start, norms = starts.mean(axis=0), np.linalg.norm(starts, axis=1)
    computed = kind is not None and kind.takes_context
    title = (
        f"{layer.state_names[index]}, {type(kind).__name__ if kind else 'not owned'}: "
    )
    if computed:
        title += (
            f"{len(starts)} starts, L2 norms {norms.min():.3g} to {norms.max():.3g}"
        )
    else:
        title += f"L2 norm {norms[0]:.3g}" if norms[0] else "at zero"
    inside, spread = np.ones(units, bool), None
    if visits is not None:
        spread = np.percentile(visits, [0, 10, 50, 90, 100], axis=0)
        inside = (spread[1] <= start) & (start <= spread[3])
        of_what = "means are" if computed else "units start"
        title += f"; {inside.sum()} of {units} {of_what} within 10 to 90 %"
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

    def reach(below: np.ndarray, above: np.ndarray, label: str) -> None:
        error = ax.errorbar(
            at,
            start,
            (below[order], above[order]),
            fmt="none",
            ecolor="0.4",
            lw=size / 4,
            label=label,
        )
        legend.append(error)

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
    if computed:
        what = "mean start"
        mean = starts.mean(axis=0)
        reach(
            mean - starts.min(axis=0), starts.max(axis=0) - mean, "range of the starts"
        )
    elif spread_of_draws is not None:
        what = "mean"
        stddev = _array(spread_of_draws)
        reach(stddev, stddev, "± stddev")
    dots(~inside, "#d95f02", f"{what}, outside 10 to 90 %")
    dots(inside, "black", what)

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
    starts: tuple[np.ndarray, list[str]],
    paths: np.ndarray,
    read: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray],
) -> None:
    """Draws the plane of the first two principal components of the visited states.

    Args:
        ax: The axes.
        name: Of the states.
        starts: The starts `(starts, units)`, and what each is called.
        paths: All states `(1 + timesteps, batch, units)`, the first not yet visited.
        read: Boolean array `(timesteps, batch)`.
        groups: For each start the first sequence that has it, and for each sequence
            which start it has.
    """
    visits = paths[1:][read]
    middle = visits.mean(axis=0)
    components, shares = _principal_components(visits - middle)

    def project(states: np.ndarray) -> np.ndarray:
        return ((states - middle) @ components.T).T

    from matplotlib import patheffects
    from matplotlib.lines import Line2D

    (points, names), (first, group) = starts, groups
    (dots,) = ax.plot(
        *project(visits), ".", ms=3, color="0.65", mec="none", label="visited: all"
    )
    dots.set_rasterized(True)
    # One of each start, then others.
    others = np.setdiff1d(np.arange(paths.shape[1]), first)
    count = np.clip(len(first), _LEAST_PATHS, _MOST_PATHS)
    chosen = np.concatenate([np.sort(first), others])[:count]
    ended: dict[str, Any] = {"marker": "s", "ms": 5, "mfc": "white"}
    for row in chosen:
        style, color = divmod(group[row], len(_COLORS))
        dash = ("-", "--")[style % 2]
        look: dict[str, Any] = {"color": _COLORS[color], "ls": dash, "lw": 1}
        x, y = project(paths[:, row])
        ax.plot(x, y, **look)
        ax.plot(x[-1:], y[-1:], **ended, **look)
    (start,) = ax.plot(
        *project(points),
        "o",
        ms=7,
        color="black",
        mec="white",
        label=f"initial states: {len(points)}" if len(points) > 1 else "initial state",
    )
    for x, y, text in zip(*project(points), names, strict=True):
        ax.annotate(
            text,
            (x, y),
            (5, 4),
            textcoords="offset points",
            weight="bold",
            path_effects=[patheffects.withStroke(linewidth=2, foreground="white")],
        )
    for axis, share, which in zip((ax.xaxis, ax.yaxis), shares, (1, 2), strict=True):
        axis.set_label_text(f"component {which} ({100 * share:.0f} % of the variance)")
    ax.set_aspect("equal", "datalim")
    ax.set_title(
        f"{name}, in the plane of their first two principal components",
        loc="left",
        fontsize="medium",
    )
    label = f"paths of {len(chosen)} of {paths.shape[1]} sequences"
    look = {"color": _COLORS[0] if len(points) == 1 else "0.3", "lw": 1}
    path = Line2D([], [], label=label, **look)
    last = Line2D([], [], label="where they end", **ended, **{**look, "ls": ""})
    _add_legend(ax, [start, path, last, dots])


def _principal_components(centered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first two, `(2, units)`, and the share of the variance that each holds.

    Of each, the entry of the largest size is positive, so that equal states give
    equal pictures. Where there is only one, the second is zero.
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
