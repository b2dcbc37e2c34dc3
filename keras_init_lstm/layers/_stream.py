"""What is carried from call to call, and where a stream ends."""

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
    """One state of a stream: what the next call of a stateful layer starts from.

    Until something is assigned to them, its rows are fresh, and show the initial state
    that the layer owns. It is no variable, but NumPy and Keras take it for a tensor
    `(batch, units)`, and `value` is one.

    Args:
        state: Which state.
        batch_size: The number of sequences of the stream.
        dtype: That of the variable.
        preview: Function of the batch size that returns what a fresh state shows.
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
        self.shape = (batch_size, state.units)
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
            shape=(batch_size, 1),
            dtype="bool",
            trainable=False,
            name="fresh",
        )
        self.path = self._variable.path

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables behind it: the state, and which rows are fresh."""
        return [self._variable, self._fresh]

    @property
    def value(self) -> Any:
        """What the next call starts from, a tensor `(batch, units)`."""
        return self.or_else(self._preview(self.shape[0]))

    @property
    def fresh(self) -> np.ndarray:
        """Which rows start from the initial state next, booleans `(batch,)`."""
        return np.array(ops.convert_to_numpy(self._fresh.value))[:, 0]

    def or_else(self, initial: Any) -> Any:
        """Returns what is carried, and of rows that are fresh `initial`."""
        carried = self._variable.value
        return ops.where(self._fresh.value, ops.cast(initial, carried.dtype), carried)

    def assign(self, value: Any, fresh_rows: Any = False) -> None:
        """Carries `value (batch, units)`, except in rows that are to be fresh."""
        if backend.only_traces(value) and not in_stateless_scope():
            warnings.warn(
                "A stateful layer is traced, and not run, so its stream is not "
                "carried: each call of what is traced (an exported file, a function "
                "that JAX transforms) starts from the states that the stream has now. "
                "`with_states_as_inputs(model)` takes and returns the states; on JAX, "
                "`model.stateless_call()` does too",
                stacklevel=2,
            )
            return
        assigned = self._variable.assign(value)

        def then() -> None:
            self._fresh.assign(ops.broadcast_to(fresh_rows, self._fresh.shape))

        # Once the value is there, so that a graph that fails before leaves it fresh.
        backend.after(assigned, then)

    def restart(self, rows: Any = None) -> None:
        """Makes the state fresh, or these rows of it, booleans `(batch, 1)`."""
        if rows is None:
            # All that the next call reads is replaced, whatever it was.
            self.assign(np.zeros(self.shape, "float32"), True)
        else:
            fresh = ops.logical_or(self._fresh.value, rows)
            self.assign(self._variable.value, fresh)

    def assign_rows(self, value: Any, rows: Any) -> None:
        """Carries `value (batch, units)` in these rows, booleans `(batch, 1)`."""
        fresh = ops.logical_and(self._fresh.value, ops.logical_not(rows))
        self.assign(ops.where(rows, value, self._variable.value), fresh)

    def numpy(self) -> np.ndarray:
        """Returns the value as an array."""
        return ops.convert_to_numpy(self.value)

    def carried(self) -> np.ndarray:
        """Returns what is carried as an array, NaN in the rows that are fresh."""
        return np.array(ops.convert_to_numpy(self.or_else(np.nan)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("A carried state can't be taken for an array uncopied.")
        return self.numpy().astype(dtype or self.dtype)

    def __tf_tensor__(self, dtype: Any = None, name: str | None = None) -> Any:
        return ops.convert_to_tensor(self.value, dtype)

    def __jax_array__(self) -> Any:
        return self.value

    def __repr__(self) -> str:
        return f"<CarriedState path={self.path}, value={self.numpy()}>"


class Stream:
    """What a stateful layer carries: one state for each sequence of a batch.

    It has no states before it begins: when its layer is built, or is given states.

    Args:
        owned: The initial states of the layer.
    """

    def __init__(self, owned: OwnedStates) -> None:
        self.lock = threading.RLock()
        self.batch_size: int | None = None
        self.states: list[CarriedState] = []
        self._owned = owned

    def begin(self, batch_size: int, dtype: str) -> None:
        """Makes the states, whose rows are fresh.

        Args:
            batch_size: The number of sequences, which all batches must have.
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
        """Whether there are states."""
        return self.batch_size is not None

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables behind all states."""
        return [variable for state in self.states for variable in state.variables]

    def check_batch_size(self, batch_size: int | None) -> None:
        """Raises a `ValueError` if a batch is known to have another size."""
        if self.has_begun and batch_size not in (None, self.batch_size):
            raise ValueError(
                f"{self._expectation} To export a model, pass an `input_signature` "
                "with that batch size. Received: sequences with a batch size of "
                f"{batch_size}"
            )

    def with_batch_size(self, sequences: Any) -> Any:
        """Returns sequences whose batch size is checked at run time too.

        Nothing is carried from a batch of another size.
        """
        shape = (self.batch_size, *[None] * (len(sequences.shape) - 1))
        return with_shape(sequences, shape, self._expectation)

    @property
    def _expectation(self) -> str:
        return (
            "A stateful layer carries one state for each sequence of a batch. Expected "
            f"a batch size of {self.batch_size}, as in the stream so far (so leave out "
            "a last batch that is smaller)."
        )

    def in_place_of(self, states: Sequence[Any], explicit: Sequence[Any]) -> list[Any]:
        """Returns what a call starts from.

        Args:
            states: For each state what is taken if it is fresh.
            explicit: For each state a tensor if it was given at the call, where the
                one of `states` stays, or `None`.
        """
        triples = zip(self.states, states, explicit, strict=True)
        return [
            carried.or_else(state) if tensor is None else state
            for carried, state, tensor in triples
        ]

    def given(
        self, states: Any, rows: Any, dtype: str
    ) -> tuple[list[Any], Any, int | None]:
        """Returns given states and rows for `restart()`, and the batch size.

        Args:
            states: Arrays `(batch, units)` or `None`, nested as the layout is. With
                `rows`, each array has one row for each of them.
            rows: Integers or booleans `(batch,)`, of a stream that has begun; or
                `None` for all.
            dtype: The dtype in which the states must be finite.

        Raises:
            ValueError: If they are not as above.
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
                values[index] = np.zeros((self.batch_size, array.shape[1]), array.dtype)
                values[index][chosen] = array
        return values, chosen[:, None], self.batch_size

    def restart(self, states: Sequence[Any] | None = None, rows: Any = None) -> None:
        """Sets what the next call starts from: `states`, or the initial states.

        Args:
            states: For each state an array `(batch, units)` or `None`.
            rows: Which rows, booleans `(batch, 1)`. Defaults to `None`, all.
        """
        backend.check_present(self.variables)
        values = states or [None] * len(self.states)
        with self.lock:
            for carried, value in zip(self.states, values, strict=True):
                if value is None:
                    carried.restart(rows)
                elif rows is None:
                    carried.assign(value)
                else:
                    carried.assign_rows(value, rows)

    def carry(self, arrays: Sequence[np.ndarray]) -> None:
        """Carries what `CarriedState.carried()` returned of each state."""
        backend.check_present(self.variables)
        with self.lock:
            for carried, array in zip(self.states, arrays, strict=True):
                fresh = np.isnan(array).all(axis=1, keepdims=True)
                carried.assign(np.where(fresh, 0, array), fresh)


def check_has_stream(layer: Any, states: Any, rows: Any) -> None:
    """Raises a `ValueError` if a layer has no stream to be reset to these arguments."""
    for argument, value in (("states", states), ("rows", rows)):
        if value is not None and not layer.stateful:
            raise ValueError(
                f"Argument `{argument}` is for a layer with `stateful=True`, and "
                f"{layer.name} was created with stateful=False. "
                f"Received: {argument}={described(value)}"
            )
    if rows is not None and not layer._stream.has_begun:
        raise ValueError(
            f"Argument `rows` is for a stream that has begun, and {layer.name} was "
            f"not built yet. Received: rows={described(rows)}"
        )


def carried_arrays(states: Any) -> list[np.ndarray]:
    """Returns what any layer carries, for `Stream.carry()`; NaN in fresh rows.

    The zeros of a layer of Keras are a stream that has not begun.
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
    """Returns given rows as booleans `(batch_size,)`.

    Args:
        rows: Integers, or booleans `(batch_size,)`.
        batch_size: That of the stream.

    Raises:
        ValueError: If they are neither, or if a row stands twice.
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
    """Returns given states one by one, and their batch size.

    Args:
        layout: The states of the layer's cell.
        states: Arrays `(batch, units)` or `None`, nested as the layout is.
        batch_size: That of the stream, `None` if it has not begun.
        dtype: That in which they must be finite.

    Raises:
        ValueError: If an array is not, or is not of that shape.
    """
    arrays = layout.unpack(states, "states")
    for index, state in enumerate(layout.states):
        if arrays[index] is not None:
            arrays[index] = array = array_of_shape(
                arrays[index], f"states[{index}]", dtype, (batch_size, state.units)
            )
            batch_size = len(array)
    return arrays, batch_size
