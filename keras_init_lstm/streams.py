"""What is carried from call to call, and where a stream ends."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_init_lstm._keras import layers_within
from keras_init_lstm.backend import backend
from keras_init_lstm.layout import State, StateLayout
from keras_init_lstm.owned import OwnedStates
from keras_init_lstm.validation import array_of_shape, described, with_shape


class CarriedState:
    """One state of a stream: what the next call of a stateful layer starts from.

    Until something is assigned to it, it is fresh, and shows the initial state that
    the layer owns. It is no variable, but NumPy and Keras take it for a tensor
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
        self._variable = keras.Variable(
            "zeros",
            shape=self.shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            name="rnn_state",
        )
        self._fresh = keras.Variable(
            "ones", shape=(), dtype="bool", trainable=False, name="fresh"
        )
        self.path = self._variable.path

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables behind it: the state, and whether it is fresh."""
        return [self._variable, self._fresh]

    @property
    def value(self) -> Any:
        """What the next call starts from, a tensor `(batch, units)`."""
        return self.or_else(self._preview(self.shape[0]))

    @property
    def fresh(self) -> bool:
        """Whether the next call starts from the initial state of the layer."""
        return bool(ops.convert_to_numpy(self._fresh))

    def or_else(self, initial: Any) -> Any:
        """Returns what is carried, or `initial` while the state is fresh."""
        carried = self._variable.value
        # A copy: the backward pass of PyTorch needs the condition as it is now, and
        # `assign()` writes into `_fresh` before that.
        fresh = ops.copy(self._fresh)
        return ops.where(fresh, ops.cast(initial, carried.dtype), carried)

    def assign(self, value: Any) -> None:
        """Carries `value (batch, units)`."""
        assigned = self._variable.assign(value)
        # Once the value is there, so that a graph that fails before leaves it fresh.
        backend.after(assigned, lambda: self._fresh.assign(False))

    def restart(self) -> None:
        """Makes the state fresh."""
        self._fresh.assign(True)

    def numpy(self) -> np.ndarray:
        """Returns the value as an array."""
        return ops.convert_to_numpy(self.value)

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

    Args:
        layout: The states of the layer's cell.
        batch_size: The number of sequences, which all batches must have.
        dtype: That of the variables.
        preview: Function of the index of a state and the batch size that returns what
            it shows while it is fresh.
    """

    def __init__(
        self,
        layout: StateLayout,
        batch_size: int,
        dtype: str,
        preview: Callable[[int, int], Any],
    ) -> None:
        self.batch_size = batch_size
        self.lock = threading.RLock()
        self.states = [
            CarriedState(state, batch_size, dtype, functools.partial(preview, index))
            for index, state in enumerate(layout.states)
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables behind all states."""
        return [variable for state in self.states for variable in state.variables]

    def check_batch_size(self, batch_size: int | None) -> None:
        """Raises a `ValueError` if a batch is known to have another size."""
        if batch_size not in (None, self.batch_size):
            raise ValueError(
                f"{self._expectation} Received: sequences with a batch size of "
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

    def restart(self, states: Sequence[Any] | None = None) -> None:
        """Makes the next call start from `states`, and where they are `None` afresh."""
        backend.check_present(self.variables)
        values = states or [None] * len(self.states)
        with self.lock:
            for carried, value in zip(self.states, values, strict=True):
                if value is None:
                    carried.restart()
                else:
                    carried.assign(value)


class CarriesStream(keras.layers.Layer):
    """What a layer inherits from before `RNN`, to carry a stream if it is stateful.

    A subclass has the layout of its states in `_layout`, and what it owns of them in
    `_owned`.
    """

    _layout: StateLayout
    _owned: OwnedStates
    _running_stream: Stream | None = None

    @property
    def variables(self) -> list[keras.Variable]:
        """As of every layer of Keras, on JAX with those of the stream.

        A training step is there a pure function of the variables of a model: what is
        not among them, `fit()` does not carry on.
        """
        variables: list[keras.Variable] = super().variables
        if backend.returns_changed_variables and self._running_stream is not None:
            variables = variables + self._running_stream.variables
        return variables

    def _begin_stream(self, batch_size: Any) -> None:
        preview = self._owned.preview
        stream = Stream(self._layout, batch_size, self.variable_dtype, preview)
        self._running_stream = stream
        # Not by Keras, which would turn the list into one of a class of its own.
        object.__setattr__(self, "states", self._layout.pack(stream.states))
        # Checkpoints that exist hold a stream under this name.
        self._stream = backend.trackable(
            {state.name: state.variables for state in stream.states}
        )

    def reset_state(self) -> None:
        """Lets the stream start afresh, from the owned initial state."""
        if self._running_stream is not None:
            self._running_stream.restart()

    def reset_states(self, states: Sequence[Any] | None = None) -> None:
        """Lets the stream start afresh, from the owned or from the given states.

        Args:
            states: List of arrays `(batch, units)` (of an LSTM, h and c), nested as
                the cell's `state_size`, that the next call starts from, also if it is
                the first. `None` as an entry, or for all, means the owned initial
                state. Defaults to `None`.

        Raises:
            ValueError: If the layer is not stateful, or if an array is not finite
                or not of that shape, with the batch size of the stream. The
                carried states are then as before.

        Example:
        >>> layer = keras_init_lstm.InitStateLSTM(4, stateful=True)
        >>> layer.reset_states(states=[np.ones((2, 4)), np.zeros((2, 4))])
        >>> layer.states[0].numpy().tolist()
        [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
        """
        if states is None:
            self.reset_state()
            return
        if not self.stateful:
            raise ValueError(
                "Argument `states` is for a layer with `stateful=True`, and "
                f"{self.name} was created with stateful=False. "
                f"Received: states={described(states)}"
            )
        batch_size = self._running_stream.batch_size if self._running_stream else None
        arrays, batch_size = states_as_arrays(
            self._layout, states, batch_size, self.compute_dtype
        )
        if self._running_stream is None and batch_size is not None:
            self._build_owned()
            with keras.name_scope(self.name):
                self._begin_stream(batch_size)
        if self._running_stream is not None:
            self._running_stream.restart(arrays)

    def _go_on_from(self, states: Any) -> None:
        """Carries what another layer carries."""
        if not (self.stateful and states):
            return
        carried = [
            None if _is_fresh(state) else np.array(ops.convert_to_numpy(state))
            for state in keras.tree.flatten(states)
        ]
        if any(state is not None for state in carried):
            self.reset_states(self._layout.pack(carried))


def _is_fresh(state: Any) -> bool:
    if isinstance(state, CarriedState):
        return state.fresh
    return not np.any(ops.convert_to_numpy(state))  # The zeros of Keras.


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


def reset_states(model: keras.layers.Layer) -> None:
    """Resets every stateful layer of a model, as Keras 2's `Model.reset_states()` did.

    Layers of nested models and of wrappers such as `Bidirectional` are found too.
    An `InitStateLSTM` returns to the initial state it owns, a layer of Keras to
    zeros.

    Args:
        model: A Keras model or layer.

    Raises:
        ValueError: If `model` is not a model or layer of Keras 3.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=0.5, stateful=True)
    >>> model = keras.Sequential([keras.Input((3, 1), batch_size=1), layer])
    >>> outputs = model(np.ones((1, 3, 1)))
    >>> keras_init_lstm.reset_states(model)
    >>> layer.states[0].numpy().tolist()
    [[0.5, 0.5]]
    """
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "Argument `model` must be a model or layer of Keras 3. "
            f"Received: {described(model)}"
        )
    backend.write_back(model)
    for layer in layers_within(model):
        if getattr(layer, "stateful", False) and hasattr(layer, "reset_state"):
            layer.reset_state()


class ResetStates(keras.callbacks.Callback):
    """Resets every stateful layer at the start of each epoch and each evaluation.

    Each epoch of `fit()` then reads its stream from the start, each run of
    `evaluate()`, the validation in `fit()` included, reads its own, and so does
    each `predict()` that is given the callback.

    Example:
    >>> model = keras.Sequential([
    ...     keras.Input((3, 1), batch_size=2),
    ...     keras_init_lstm.InitStateLSTM(4, initial_state="trainable", stateful=True),
    ... ])
    >>> model.compile(loss="mse")
    >>> x, y = np.ones((8, 3, 1)), np.ones((8, 4))
    >>> history = model.fit(
    ...     x, y, batch_size=2, shuffle=False, verbose=0,
    ...     callbacks=[keras_init_lstm.ResetStates()],
    ... )
    """

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        reset_states(self.model)

    def on_test_begin(self, logs: Any = None) -> None:
        reset_states(self.model)

    def on_predict_begin(self, logs: Any = None) -> None:
        reset_states(self.model)
