"""The states that a stateful layer carries from call to call, and their resets."""

import functools
import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import array_of_shape, described, with_shape
from keras_init_lstm._keras import in_stateless_scope
from keras_init_lstm.backend import backend
from keras_init_lstm.initial_states.layout import State, StateLayout
from keras_init_lstm.initial_states.owned import OwnedStates


class CarriedState:
    """One carried state of a stateful layer. The next call starts from its value.

    A row is fresh until a value is assigned to it, and again after a reset. A fresh
    row shows the initial state that the layer owns. A carried state is not a
    `keras.Variable`, but NumPy and Keras convert it to its `value`.

    Args:
        state: The name and the shape of the state.
        batch_size: The number of sequences of the stream.
        dtype: The dtype of the variable.
        preview: Function that takes a batch size and returns the initial state that
            fresh rows show, a tensor `(batch_size, *shape)`.
    """

    trainable = False

    def __init__(
        self,
        state: State,
        batch_size: int,
        dtype: str,
        preview: Callable[[int], Any],
    ) -> None:
        self.name = state.name
        self.shape = (batch_size, *state.shape)
        self.dtype = dtype
        self._preview = preview
        self._variable = backend.Variable(
            "zeros",
            shape=self.shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            name="rnn_state",
        )
        self._fresh = backend.Variable(
            "ones",
            shape=(batch_size, *[1] * len(state.shape)),
            dtype="bool",
            trainable=False,
            name="fresh",
        )
        self.path = self._variable.path

    @property
    def variables(self) -> list[keras.Variable]:
        """Two variables: the state, and whether each row is fresh."""
        return [self._variable, self._fresh]

    @property
    def value(self) -> Any:
        """The state that the next call starts from, a tensor `(batch, *shape)`."""
        return self.or_else(self._preview(self.shape[0]))

    @property
    def fresh(self) -> np.ndarray:
        """Whether the next call starts each row from the initial state: `(batch,)`."""
        return np.array(ops.convert_to_numpy(self._fresh.value)).reshape(-1)

    def or_else(self, initial: Any) -> Any:
        """Returns the carried state, with `initial` in the fresh rows."""
        carried = self._variable.value
        return ops.where(self._fresh.value, ops.cast(initial, carried.dtype), carried)

    def assign(self, value: Any, fresh_rows: Any = False) -> None:
        """Sets the state to `value (batch, *shape)`, and which rows are fresh."""
        if backend.only_traces(value) and not in_stateless_scope():
            warnings.warn(
                "A stateful layer is traced, and not run, so its stream is not "
                "carried: each call of the traced function or exported file starts "
                "from the states that the stream has now. Use "
                "`with_states_as_inputs(model)`, which takes and returns the states, "
                "or on JAX `model.stateless_call()`",
                stacklevel=2,
            )
            return
        assigned = self._variable.assign(value)

        def assign_fresh_rows() -> None:
            self._fresh.assign(ops.broadcast_to(fresh_rows, self._fresh.shape))

        # Assign the value first: if a graph fails in between, the rows stay fresh.
        backend.after(assigned, assign_fresh_rows)

    def reset(self, rows: Any = None) -> None:
        """Makes all rows fresh, or the given rows.

        Args:
            rows: Boolean array `(batch,)`, `True` for the rows to reset. Defaults to
                `None`, all rows.
        """
        if rows is None:
            # Overwrite the value without reading it: a failed trace may have left a
            # value that can't be read.
            self.assign(np.zeros(self.shape, "float32"), True)
        else:
            fresh = ops.logical_or(self._fresh.value, self._like_fresh(rows))
            self.assign(self._variable.value, fresh)

    def assign_rows(self, value: Any, rows: Any) -> None:
        """Sets the rows where `rows`, a boolean array `(batch,)`, is True."""
        rows = self._like_fresh(rows)
        fresh = ops.logical_and(self._fresh.value, ops.logical_not(rows))
        self.assign(ops.where(rows, value, self._variable.value), fresh)

    def _like_fresh(self, rows: np.ndarray) -> np.ndarray:
        return rows.reshape(self._fresh.shape)

    def numpy(self) -> np.ndarray:
        """Returns the value as an array."""
        return ops.convert_to_numpy(self.value)

    def carried(self) -> np.ndarray:
        """Returns the carried state as an array, with NaN in the fresh rows."""
        return np.array(ops.convert_to_numpy(self.or_else(np.nan)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "Argument `copy` must be None or True, because the array of a carried "
                "state is always a copy. Received: copy=False"
            )
        return self.numpy().astype(dtype or self.dtype)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        return ops.convert_to_tensor(self.value, dtype)

    def __jax_array__(self) -> Any:
        return self.value

    def __repr__(self) -> str:
        return f"<CarriedState path={self.path}, value={self.numpy()}>"


class Stream:
    """The states that a stateful layer carries for each sequence of a batch.

    It has no states before it begins: when the layer is built, or reset to states.

    Args:
        owned: The initial states of the layer.
    """

    def __init__(self, owned: OwnedStates) -> None:
        self.lock = threading.RLock()
        self.batch_size: int | None = None
        self.states: list[CarriedState] = []
        self._owned = owned

    def begin(self, batch_size: int, dtype: str) -> None:
        """Creates the states. All their rows are fresh.

        Args:
            batch_size: The number of sequences of every batch.
            dtype: The dtype of the variables.
        """
        preview = self._owned.preview
        self.states = [
            CarriedState(state, batch_size, dtype, functools.partial(preview, index))
            for index, state in enumerate(self._owned.layout.states)
        ]
        self.batch_size = batch_size

    @property
    def has_begun(self) -> bool:
        """Whether the stream has states."""
        return self.batch_size is not None

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of all states."""
        return [variable for state in self.states for variable in state.variables]

    def check_batch_size(self, batch_size: int | None) -> None:
        """Raises a `ValueError` if the batch size of a call is known to differ."""
        if self.has_begun and batch_size not in (None, self.batch_size):
            raise ValueError(
                f"{self._expectation} To export a model, pass an `input_signature` "
                "with this batch size. Received: sequences with a batch size of "
                f"{batch_size}"
            )

    def with_batch_size(self, sequences: Any) -> Any:
        """Returns `sequences`, with a check of the batch size at run time.

        The check fails before the states of a batch of another size are carried.
        """
        shape = (self.batch_size, *[None] * (len(sequences.shape) - 1))
        return with_shape(sequences, shape, self._expectation)

    @property
    def _expectation(self) -> str:
        return (
            "A stateful layer carries one state for each sequence of a batch. Expected "
            f"a batch size of {self.batch_size}, as in the stream so far (drop a "
            "smaller last batch)."
        )

    def states_before_call(
        self, states: Sequence[Any], explicit: Sequence[Any]
    ) -> list[Any]:
        """Returns the states before the first timestep of a call.

        Args:
            states: For each state, the initial state or the explicit state.
            explicit: For each state, the tensor that was passed at the call, which
                replaces the carried state; or `None`.
        """
        triples = zip(self.states, states, explicit, strict=True)
        return [
            carried.or_else(state) if tensor is None else state
            for carried, state, tensor in triples
        ]

    def checked(
        self, states: Any, rows: Any, dtype: str
    ) -> tuple[list[Any], Any, int | None]:
        """Returns states and rows as `reset()` takes them, and the batch size.

        Args:
            states: Arrays `(batch, *shape)` or `None`, nested as the layout is. With
                `rows`, an array has one row for each row that is reset.
            rows: Integers or booleans `(batch,)`, if the stream has begun; or `None`
                for all.
            dtype: The dtype in which the states must be finite.

        Raises:
            ValueError: If `states` or `rows` are not as above.
        """
        layout = self._owned.layout
        if rows is None:
            arrays, batch_size = states_as_arrays(
                layout, states, self.batch_size, dtype
            )
            return arrays, None, batch_size
        assert self.batch_size is not None
        chosen = rows_as_mask(rows, self.batch_size)
        arrays, _ = states_as_arrays(layout, states, int(chosen.sum()), dtype)
        values: list[Any] = [None] * len(arrays)
        for index, array in enumerate(arrays):
            if array is not None:
                shape = (self.batch_size, *array.shape[1:])
                values[index] = np.zeros(shape, array.dtype)
                values[index][chosen] = array
        return values, chosen, self.batch_size

    def reset(self, states: Sequence[Any] | None = None, rows: Any = None) -> None:
        """Resets the stream to `states`, or to the initial states.

        Args:
            states: For each state an array `(batch, *shape)`, or `None` for the initial
                state. Defaults to `None`, the initial states.
            rows: The rows to reset, booleans `(batch,)`. Defaults to `None`, all.
        """
        backend.check_present(self.variables)
        values = states or [None] * len(self.states)
        with self.lock:
            for carried, value in zip(self.states, values, strict=True):
                if value is None:
                    carried.reset(rows)
                elif rows is None:
                    carried.assign(value)
                else:
                    carried.assign_rows(value, rows)

    def carry(self, arrays: Sequence[np.ndarray]) -> None:
        """Sets each state to an array of `CarriedState.carried()`."""
        backend.check_present(self.variables)
        with self.lock:
            for carried, array in zip(self.states, arrays, strict=True):
                axes = tuple(range(1, array.ndim))
                fresh = np.isnan(array).all(axis=axes, keepdims=True)
                carried.assign(np.where(fresh, 0, array), fresh)


def check_has_stream(layer: Any, states: Any, rows: Any) -> None:
    """Raises a `ValueError` if a layer has no stream for these arguments of a reset."""
    for argument, value in (("states", states), ("rows", rows)):
        if value is not None and not layer.stateful:
            raise ValueError(
                f"Argument `{argument}` is for a layer with `stateful=True`, and "
                f"{layer.name} was created with stateful=False. "
                f"Received: {argument}={described(value)}"
            )
    if rows is not None and not layer._stream.has_begun:
        raise ValueError(
            f"Argument `rows` is for a layer that is built, and {layer.name} is not "
            f"built yet. Received: rows={described(rows)}"
        )


def carried_arrays(states: Any) -> list[np.ndarray]:
    """Returns the carried states of any layer as arrays, with NaN in the fresh rows.

    A Keras layer resets its states to zeros, so zeros mean that all rows are fresh.
    """
    arrays = []
    for state in keras.tree.flatten(states):
        if isinstance(state, CarriedState):
            array = state.carried()
        else:
            array = np.array(ops.convert_to_numpy(state))
            array = array if array.any() else np.full_like(array, np.nan)
        arrays.append(array)
    return arrays


def rows_as_mask(rows: Any, batch_size: int) -> np.ndarray:
    """Converts `rows` to booleans `(batch_size,)`.

    Args:
        rows: Integers, or booleans `(batch_size,)`.
        batch_size: The batch size of the stream.

    Raises:
        ValueError: If `rows` is neither, or if an integer is out of range or repeated.
    """
    try:
        array = np.asarray(rows)
    except (TypeError, ValueError, NotImplementedError):
        # A symbolic tensor, or lists of different lengths.
        array = np.asarray(None)
    if array.dtype == bool and array.shape == (batch_size,):
        return array
    mask = np.zeros(batch_size, bool)
    if array.dtype.kind in "iu" or array.size == 0:
        indices = array.ravel().astype(int)
        if array.ndim < 2 and ((indices >= 0) & (indices < batch_size)).all():
            mask[indices] = True
    if mask.sum() != array.size or array.ndim > 1:
        raise ValueError(
            f"Argument `rows` must be different integers from 0 to {batch_size - 1}, "
            f"or booleans of shape ({batch_size},). Received: rows={described(rows)}"
        )
    return mask


def states_as_arrays(
    layout: StateLayout, states: Any, batch_size: int | None, dtype: str
) -> tuple[list[np.ndarray | None], int | None]:
    """Converts states to a flat list of arrays, and returns it with their batch size.

    Args:
        layout: The states of the layer's cell.
        states: Arrays `(batch, *shape)` or `None`, nested as the layout is.
        batch_size: The batch size of the stream, `None` if it has not begun.
        dtype: The dtype in which the arrays must be finite.

    Raises:
        ValueError: If an array is not finite or has another shape.
    """
    arrays = layout.unpack(states, "states")
    for index, state in enumerate(layout.states):
        if arrays[index] is not None:
            arrays[index] = array = array_of_shape(
                arrays[index], f"states[{index}]", dtype, (batch_size, *state.shape)
            )
            batch_size = len(array)
    return arrays, batch_size
