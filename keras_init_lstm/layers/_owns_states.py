"""What a recurrent layer does with its initial states and with its stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import check_batch_size, one_of
from keras_init_lstm._keras import forget_layer
from keras_init_lstm._types import Numbers, Shape
from keras_init_lstm.backend import backend
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.initial_states.owned import OwnedStates, kinds_of
from keras_init_lstm.layers._attributes import (
    check_may_be_deleted,
    replace_attribute,
)
from keras_init_lstm.layers._call import (
    TakesContext,
    build_lock,
    lists_as_arrays,
    specs_of,
)
from keras_init_lstm.layers._resets import first_timestep
from keras_init_lstm.layers._stream import Stream, carried_arrays, check_has_stream

# The type of the argument `initial_state` of a layer. Lists are `list[Any]`, because a
# type checker rejects a variable of type `list[Trainable]` for `list[InitialState]`.
InitialStateArgument: TypeAlias = (
    InitialState
    | Literal["zeros", "fixed", "sampled", "trainable"]
    | Numbers
    | list[Any]
    | tuple[Any, ...]
    | None
)

# The states of one layer: nested as the cell's `state_size`, or by their names.
States: TypeAlias = Sequence[Any] | Mapping[str, Any]


class OwnsStates(TakesContext, keras.layers.RNN):
    """The part of `InitStateRNN` that reads, sets and resets states.

    A subclass builds and calls the layer.
    """

    def _make_owned_states(self, initial_state: InitialStateArgument) -> None:
        """Creates the owned states. Every constructor calls it after Keras's own."""
        if getattr(keras.config, "is_nnx_enabled", bool)():
            raise ValueError(
                "The layers of this package don't work in the NNX mode of Keras: Flax "
                "would find neither their initial states nor their streams, and the "
                "gradient of a learned state would be zero. Unset the environment "
                "variable KERAS_NNX_ENABLED. Received: KERAS_NNX_ENABLED=true"
            )
        layout = StateLayout.of(self)
        kinds = self._kinds_of(layout, initial_state)
        if hasattr(self, "_owned"):
            for name in self.state_names:
                super().__delattr__(name)
            for kind, _ in self._owned.groups:
                if kind is not None:
                    forget_layer(self, kind)
        self._owned: OwnedStates = OwnedStates(layout, kinds, self._states_of_cell)
        self._stream = Stream(self._owned)
        # Set them as the attributes `h0`, `c0` too: Keras and TensorFlow name the
        # entries of their files after attributes.
        for name, kind in zip(layout.names, kinds, strict=True):
            super().__setattr__(name, kind)

    def _kinds_of(
        self, layout: StateLayout, initial_state: InitialStateArgument
    ) -> list[InitialState | None]:
        with keras.name_scope(self.name):
            return kinds_of(layout, initial_state, self.dtype_policy, self.trainable)

    def __setattr__(self, name: str, value: Any) -> None:
        # While Keras's constructor runs, the layer has no owned states yet.
        if not (hasattr(self, "_owned") and replace_attribute(self, name, value)):
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        check_may_be_deleted(self, name)
        super().__delattr__(name)

    @property
    def _layout(self) -> StateLayout:
        return self._owned.layout

    def _layout_for(self, sequences_shape: Shape) -> StateLayout:
        """Returns the layout with the shapes of the states for these sequences.

        Raises:
            ValueError: If the shapes do not follow from the sequences.
        """
        if self.built:
            return self._layout
        rank = getattr(self.input_spec, "ndim", None)
        if rank not in (None, len(sequences_shape)):
            return self._layout  # Keras raises the error for another rank.
        return StateLayout.of(self, sequences_shape)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the states, such as `("h0", "c0")` of an LSTM."""
        return self._layout.names

    @property
    def state_units(self) -> tuple[int, ...]:
        """The units (or filters) of the states, in the order of `state_names`."""
        return tuple(state.units for state in self._layout.states)

    @property
    def initial_state(self) -> tuple[InitialState | None, ...]:
        """The objects that own the initial states, in the order of `state_names`.

        `None` means the initial state of the cell, zeros by default.
        """
        # A tuple, because an assignment to an entry of a list would be lost.
        return tuple(self._owned.kinds)

    @property
    def takes_context(self) -> bool:
        """Whether an owned initial state is `Conditional`."""
        return self._owned.takes_context

    def _build_owned(
        self, context: Any = None, at_once: bool = False, shape: Shape | None = None
    ) -> None:
        with build_lock, keras.name_scope(self.name):
            if shape is not None:
                self._owned.layout = self._layout_for(shape)
            self._owned.build(context, at_once)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the layer. On JAX, they include the stream.

        On JAX, a training step is a pure function of the model's variables, and
        `fit()` updates only these.
        """
        variables: list[keras.Variable] = super().variables
        if backend.returns_changed_variables:
            variables = variables + self._stream.variables
        return variables

    def reset_state(self) -> None:
        """Resets the stream to the owned initial state."""
        self._stream.reset()

    def reset_states(self, states: States | None = None, rows: Any = None) -> None:
        """Resets the stream to the owned initial state, or to the given states.

        Args:
            states: List of arrays `(batch, units)` (for an LSTM, h and c), nested as
                the cell's `state_size`; or a dictionary of them, as at a call. The next
                call starts from them, even if it is the first call. With `rows`, an
                array has one row for each row that is reset. `None` as an entry, or for
                all, means the owned initial state. Defaults to `None`.
            rows: The rows of the batch to reset: different integers, or booleans
                `(batch,)`. Defaults to `None`, all.

        Raises:
            ValueError: If the layer is not stateful and `states` or `rows` is given,
                if `rows` is given before the layer is built, if `rows` are not rows of
                the batch, or if an array is not finite or has another shape. The
                carried states are then unchanged.

        Example:
        >>> layer = keras_init_lstm.InitStateLSTM(4, stateful=True)
        >>> layer.reset_states(states=[np.ones((2, 4)), np.zeros((2, 4))])
        >>> layer.reset_states(rows=[1])
        >>> layer.states[0].numpy().tolist()
        [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]
        """
        if states is None and rows is None:
            self.reset_state()
            return
        check_has_stream(self, states, rows)
        arrays, row_mask, batch_size = self._stream.checked(
            states, rows, self.compute_dtype
        )
        if batch_size is not None:
            self._stream_of(batch_size).reset(arrays, row_mask)

    def _create_stream(self, batch_size: Any) -> None:
        self._stream.begin(batch_size, self.variable_dtype)
        # Keras's `__setattr__` would convert the list to a `TrackedList`.
        object.__setattr__(self, "states", self._layout.pack(self._stream.states))
        # A TensorFlow checkpoint saves the stream under this name.
        self._carried = backend.trackable(
            {state.name: state.variables for state in self._stream.states}
        )

    def _stream_of(self, batch_size: int) -> Stream:
        """Returns the stream; creates its states if it has none yet."""
        if not self._stream.has_begun:
            self._check_knows_shapes()
            self._build_owned()
            with keras.name_scope(self.name):
                self._create_stream(batch_size)
        return self._stream

    def _check_knows_shapes(self) -> None:
        """Raises a `ValueError` if the layer must be built to know its states."""
        if None in keras.tree.flatten([s.shape for s in StateLayout.of(self).states]):
            raise ValueError(
                f"The spatial dimensions of {self.name} (of class "
                f"{type(self).__name__}) are unknown before the layer is built: call "
                "it, or its model, once before"
            )

    def _continue_from(self, states: Any) -> None:
        """Copies the carried states of another layer."""
        if self.stateful and states:
            arrays = carried_arrays(states)
            if not all(np.isnan(array).all() for array in arrays):
                self._stream_of(len(arrays[0])).carry(arrays)

    def _states_of_cell(self, batch_size: Any) -> list[Any]:
        return keras.tree.flatten(super().get_initial_state(batch_size))

    def get_initial_state(
        self, batch_size: Any, training: bool = False, context: Any = None
    ) -> list[Any]:
        """Returns the owned initial states of a batch.

        Args:
            batch_size: Integer, or scalar integer tensor.
            training: Python boolean, whether to return the initial states of a call in
                training mode, in which a `Sampled` state is drawn. Defaults to `False`.
            context: The context from which a `Conditional` state is computed, as at a
                call. Defaults to `None`.

        Returns:
            List of tensors `(batch_size, units)` of dtype `compute_dtype`: for an LSTM,
            h and c; for a stack of cells, a list for each cell.

        Raises:
            ValueError: If `batch_size` is not a non-negative integer or a scalar
                integer tensor; if `context` is missing, does not have `batch_size`
                rows, or is given to a layer without a `Conditional` state.
        """
        check_batch_size(batch_size)
        context = lists_as_arrays(context)
        self._check_knows_shapes()
        self._owned.check_context(context, batch_size, None, None, self.name)
        self._build_owned(specs_of(context))
        states = self._owned.for_batch(
            batch_size, training, context, first_timestep=first_timestep(self)
        )
        states = [ops.cast(state, self.compute_dtype) for state in states]
        return self._layout.pack(states)

    def assign_initial_state(
        self, states: States, reduction: Literal["mean"] | None = None
    ) -> None:
        """Overwrites the owned initial states.

        Args:
            states: List of arrays `(units,)` (for an LSTM, h and c), nested as the
                cell's `state_size`; or a dictionary of them, as at a call. `None` as an
                entry of the list leaves that state unchanged. For a `Sampled` state,
                the mean is overwritten.
            reduction: With `"mean"`, an array may also be `(batch, units)`, and its
                mean over the batch is assigned. Defaults to `None`.

        Raises:
            ValueError: If an array has another shape or is not finite, if the layer
                owns no value for a state, as with `initial_state=None` or a
                `Conditional`, or if `reduction` is not as above. Nothing is then
                changed.

        Example:
        >>> encoder = keras.layers.LSTM(4, return_state=True)
        >>> _, h, c = encoder(np.ones((8, 5, 3)))
        >>> decoder = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
        >>> decoder.assign_initial_state([h, c], reduction="mean")
        """
        one_of(reduction, "reduction", (None, "mean"))
        self._build_owned()
        arrays = self._layout.unpack(states, "states")
        self._owned.assign(arrays, self.compute_dtype, reduction)
