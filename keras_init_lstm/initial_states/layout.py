"""How the states of a cell are named, sized and nested."""

import dataclasses
import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import keras
from keras import ops

from keras_init_lstm._checks import check_shape, described, shape_text, with_shape
from keras_init_lstm._keras import is_conv_lstm_cell
from keras_init_lstm._types import Shape
from keras_init_lstm.initial_states.base import InitialState, one_axis


@dataclasses.dataclass(frozen=True)
class State:
    """One state of a cell, such as the hidden state h of an LSTM.

    Args:
        name: The name of the layer's attribute with its initial state, such as `h0`.
        shape: The shape of the state without the batch: `(units,)`, or of a ConvLSTM
            `(*space, filters)` or `(filters, *space)`. A size is `None` if it is not
            known before the layer is built.
        units_axis: The axis of `shape` with the units or filters. Defaults to -1.
    """

    name: str
    shape: tuple[Any, ...]
    units_axis: int = -1

    @property
    def units(self) -> int:
        """The number of units or filters."""
        return int(self.shape[self.units_axis])

    def shape_for(self, kind: InitialState) -> tuple[Any, ...]:
        """Returns the shape that `build()` of a kind of initial state gets."""
        return self.shape if kind.per_position else (self.units,)

    def over_space(self, tensor: Any, axes: int = 1) -> Any:
        """Broadcasts `(batch, units)` to `(batch, *shape)`.

        Args:
            tensor: A tensor `(batch, units)`, or `(batch, *shape)`, which is returned
                as it is.
            axes: The number of axes before the units: 2 for a tensor
                `(batch, timesteps, units)`. Defaults to 1.
        """
        if len(tensor.shape) == axes + len(self.shape):
            return tensor
        first = ops.shape(tensor)[:axes]
        narrow = ops.reshape(tensor, (*first, *one_axis(self.shape, self.units_axis)))
        return ops.broadcast_to(narrow, (*first, *self.shape))


@dataclasses.dataclass(frozen=True)
class StateLayout:
    """The states of a cell in order, and how they are nested.

    Args:
        states: The states, in order.
        state_size: Integers, nested as Keras nests the states that the cell takes and
            returns: in a list, and in a list for each cell of a stack.

    Example:
    >>> from keras_init_lstm.initial_states.layout import StateLayout
    >>> cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(3)]
    >>> layout = StateLayout.of(keras.layers.RNN(cells))
    >>> [(state.name, state.shape) for state in layout.states]
    [('cell0_h0', (4,)), ('cell0_c0', (4,)), ('cell1_h0', (3,))]
    >>> layout.unpack([[1, 2], 3], "states")
    [1, 2, 3]
    >>> layout.pack([1, 2, 3])
    [[1, 2], [3]]
    """

    states: tuple[State, ...]
    state_size: list[Any]

    @classmethod
    def of(
        cls, rnn: keras.layers.RNN, sequences_shape: Shape | None = None
    ) -> "StateLayout":
        """The layout of the cell of a recurrent layer.

        Args:
            rnn: A recurrent layer.
            sequences_shape: The shape of the sequences, from which the shape of the
                states of a ConvLSTM follows. Defaults to `None`: it is known if the
                cell is built.

        Raises:
            ValueError: If a spatial dimension of a ConvLSTM's sequences is unknown.
        """
        if is_conv_lstm_cell(rnn.cell):
            shape, axis = _shape_of_conv_lstm(rnn.cell, sequences_shape)
            states = [State(name, shape, axis) for name in ("h0", "c0")]
            # Keras does not know the shape in the constructor: `state_size` is -1.
            return cls(tuple(states), [state.units for state in states])
        units = list(map(int, keras.tree.flatten(rnn.state_size)))
        names = _state_names(rnn.cell)
        if isinstance(rnn, keras.layers.LSTM) and len(units) == 2:
            names = ("h0", "c0")  # Even if a user has replaced the cell.
        states = [State(name, (size,)) for name, size in zip(names, units, strict=True)]
        return cls(tuple(states), _nested_as_list(rnn.cell))

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the states, in order."""
        return tuple(state.name for state in self.states)

    def pack(self, entries: Sequence[Any]) -> list[Any]:
        """Nests one entry for each state as `state_size` is nested."""
        remaining = iter(entries)

        def nested(sizes: Any) -> Any:
            return (
                list(map(nested, sizes)) if isinstance(sizes, list) else next(remaining)
            )

        return nested(self.state_size)

    def unpack(
        self, nested: Any, argument: str, one_for_all: bool = False
    ) -> list[Any]:
        """Flattens entries that are nested as `state_size` is, one for each state.

        Args:
            nested: The entries. `None` is used for all the states of a cell. A single
                state needs no list. Without `one_for_all`, also a dictionary with an
                entry for each state, by names such as `"h0"`, or `"lstm/h0"` with any
                path that is the same for all.
            argument: The name of the argument, for errors.
            one_for_all: Whether any entry that is not a list may be used for all the
                states of a cell. Defaults to `False`.

        Raises:
            ValueError: If the entries are nested differently, or if numbers in a list
                could be meant for the states or for the units.
        """
        if isinstance(nested, Mapping) and not one_for_all:
            return self._by_name(nested, argument)
        entries = self._entries(nested, argument, one_for_all)
        return [entry for entry, states in entries for _ in states]

    def shared_entries(
        self, nested: Any, argument: str
    ) -> list[tuple[Any, tuple[State, ...]]]:
        """Returns each entry with the states that it is used for.

        Args:
            nested: Entries as in `unpack()`, with `one_for_all=True`.
            argument: The name of the argument, for errors.
        """
        return self._entries(nested, argument, one_for_all=True)

    def _entries(
        self, nested: Any, argument: str, one_for_all: bool
    ) -> list[tuple[Any, tuple[State, ...]]]:
        remaining = iter(self.states)

        def entries(sizes: Any, given: Any) -> list[Any]:
            if not isinstance(sizes, list):
                return [(given, (next(remaining),))]
            is_list = isinstance(given, (list, tuple))
            if not is_list and (given is None or one_for_all or len(sizes) == 1):
                return [(given, tuple(itertools.islice(remaining, _count(sizes))))]
            if not is_list or len(given) != len(sizes):
                raise ValueError(self._not_one_each(nested, argument, one_for_all))
            if one_for_all and len(sizes) > 1 and _are_also_units(given, sizes):
                raise ValueError(
                    f"Argument `{argument}` may mean one number for each of the "
                    f"{len(sizes)} states, or for each of the {len(sizes)} units. For "
                    "the states pass [Fixed(...), Fixed(...)], for the units of every "
                    f"state np.array([...]). Received: {argument}={described(nested)}"
                )
            return [
                entry
                for size, part in zip(sizes, given, strict=True)
                for entry in entries(size, part)
            ]

        return entries(self.state_size, nested)

    def _by_name(self, entries: Mapping[str, Any], argument: str) -> list[Any]:
        """Returns the entries of a dictionary, in the order of the states."""
        paths = {str(key).rpartition("/")[0] for key in entries}
        path = f"{paths.pop()}/".lstrip("/") if len(paths) == 1 else ""
        keys = [path + name for name in self.names]
        if set(keys) != set(entries):
            raise ValueError(
                f"Argument `{argument}` must be a list, or a dictionary with an entry "
                f"for each of {list(self.names)}. Received: a dictionary with the keys "
                f"{sorted(map(str, entries))}"
            )
        return [entries[key] for key in keys]

    def tensors(
        self, nested: Any, batch_size: Any, at_run_time: bool = False
    ) -> list[Any]:
        """Returns the explicit states of a call, `None` for each that is not given.

        Args:
            nested: Tensors `(batch, *shape)` or `None`, nested as `state_size` is.
            batch_size: Integer, scalar integer tensor, or `None` if it is not known.
            at_run_time: Whether sizes that are not known yet are checked at run time,
                where the backend raises its own error. Defaults to `False`.

        Raises:
            ValueError: If the states are nested differently, or if a state is known to
                have another shape.
        """
        tensors = self.unpack(nested, "initial_state")
        for index, state in enumerate(self.states):
            if tensors[index] is not None:
                shape = (batch_size, *state.shape)
                expectation = (
                    f"Argument `initial_state[{index}]` must be a tensor of shape "
                    f"{shape_text(shape)}."
                )
                check_shape(tensors[index], shape, expectation)
                if at_run_time:
                    tensors[index] = with_shape(tensors[index], shape, expectation)
        return tensors

    def _not_one_each(self, nested: Any, argument: str, one_for_all: bool) -> str:
        count = len(self.states)
        which = "the one state" if count == 1 else f"each of the {count} states"
        texts = [f"{state.name} ({state.units} units)" for state in self.states]
        text = str(self.pack(texts))[1:-1].replace("'", "")
        hint = " (for one value for each unit, pass an array)" if one_for_all else ""
        return (
            f"Argument `{argument}` must be a list with one entry for {which}: "
            f"{text}{hint}. Received: {argument}={described(nested)}"
        )


def _shape_of_conv_lstm(cell: Any, sequences_shape: Shape | None) -> tuple[Shape, int]:
    """Returns the shape of a state without the batch, and the axis of the filters."""
    channels_first = cell.data_format == "channels_first"
    if sequences_shape is not None:
        space = sequences_shape[3:] if channels_first else sequences_shape[2:-1]
        if None in space:
            raise ValueError(
                "Argument `sequences` must have known spatial dimensions, from which "
                "the size of the states follows. "
                f"Received: sequences of shape {tuple(sequences_shape)}"
            )
    else:
        space = cell.spatial_dims if cell.built else (None,) * cell.rank
    # The size of the state does not depend on the number of channels.
    step_shape = (None, 1, *space) if channels_first else (None, *space, 1)
    (_, *shape), _ = cell.compute_output_shape(step_shape)
    return tuple(shape), 0 if channels_first else -1


def _nested_as_list(cell: Any) -> list[Any]:
    """Returns the sizes of the states of a cell, nested as Keras nests the states.

    In the `state_size` of a stack, the size of a single state has no list, but Keras
    puts the state into a list. Its loop on JAX relies on this: without the list, it
    puts out the state of the first row at the masked timesteps of all rows.
    """
    if isinstance(cell, keras.layers.StackedRNNCells):
        nested = [_nested_as_list(inner) for inner in cell.cells]
        # A stack of one such cell returns the state without the list, with which
        # Keras's loops would fail.
        return nested if len(nested) > 1 or len(nested[0]) > 1 else nested[0]
    sizes = cell.state_size
    return _as_lists(sizes) if isinstance(sizes, (list, tuple)) else [sizes]


def _count(sizes: Any) -> int:
    """Returns the number of states of a cell, from their nested sizes."""
    return sum(map(_count, sizes)) if isinstance(sizes, list) else 1


def _as_lists(sizes: Any) -> Any:
    # Keras stores lists as `TrackedList`, which JAX does not treat as a list.
    if isinstance(sizes, (list, tuple)):
        return [_as_lists(size) for size in sizes]
    return sizes


def _are_also_units(given: Sequence[Any], sizes: Sequence[Any]) -> bool:
    return all(
        type(entry) in (int, float) and size == len(given)
        for entry, size in zip(given, sizes, strict=True)
    )


def _state_names(cell: Any) -> tuple[str, ...]:
    if isinstance(cell, keras.layers.StackedRNNCells):
        return tuple(
            f"cell{index}_{name}"
            for index, inner in enumerate(cell.cells)
            for name in _state_names(inner)
        )
    if isinstance(cell, keras.layers.LSTMCell):
        return ("h0", "c0")
    count = len(keras.tree.flatten(cell.state_size))
    return ("h0",) if count == 1 else tuple(f"state{i}" for i in range(count))
