"""Recurrent layers around any cell that own their initial state."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import (
    check_batch_size,
    refuse_legacy,
    shape_of,
)
from keras_init_lstm._copies import (
    build_inside,
    builds_itself,
    specs_of_shapes,
)
from keras_init_lstm._keras import forget_layer
from keras_init_lstm._types import Numbers, RNNArguments
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
    building,
    lists_as_arrays,
    specs_of,
    unwrapped,
)
from keras_init_lstm.layers._from_keras import taken_over
from keras_init_lstm.layers._loop import (
    arguments_of_loop,
    check_loop,
    run_loop,
)
from keras_init_lstm.layers._resets import (
    check_reset_mask,
    first_read,
    restarted,
)
from keras_init_lstm.layers._stream import Stream, carried_arrays, check_has_stream

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

# What the argument `initial_state` of a layer may be. What is in a list is not said: a
# type checker would refuse a variable of type `list[Trainable]` for `list[Entry]`.
InitialStateArgument: TypeAlias = (
    InitialState
    | Literal["zeros", "fixed", "sampled", "trainable"]
    | Numbers
    | list[Any]
    | tuple[Any, ...]
    | None
)


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateRNN(TakesContext, keras.layers.RNN):
    """Recurrent layer around any cell that owns its initial state.

    It is `keras.layers.RNN` except for the initial states: the layer owns them, and
    broadcasts them to any batch size,

        InitStateRNN(cell)(x) == RNN(cell)(x, initial_state=states)

    with `states` the owned states as tensors `(batch, units)`. Without `initial_state`
    it has the weights, the outputs and the summary of an `RNN`. `InitStateLSTM`,
    `InitStateGRU` and `InitStateSimpleRNN` are subclasses of it.

    Args:
        cell: An RNN cell, or a list of them, which are stacked.
        return_sequences: This and the next as in `keras.layers.RNN`.
        return_state: As in `keras.layers.RNN`.
        go_backwards: As in `keras.layers.RNN`.
        stateful: As in `keras.layers.RNN`; see "Stateful streams".
        unroll: As in `keras.layers.RNN`.
        zero_output_for_mask: As in `keras.layers.RNN`.
        initial_state: The initial states. One entry, used for every state (each then
            owns its own variables), or a list that is nested as the cell's
            `state_size`, in which one entry may stand for all the states of a cell. An
            entry is one of:

            - `None` or `"zeros"`: the initial state of the cell, which is zeros unless
              the cell has a custom `get_initial_state()`.
            - A number or an array of shape `(units,)`: `Fixed` at that value.
            - `"fixed"`, `"sampled"` or `"trainable"`: the object with its defaults.
            - A `Fixed`, `Sampled`, `Trainable` or `Conditional` object, or an object
              of another subclass of `InitialState`. The layer makes a copy; the copies
              are in `layer.initial_state`, in the order of `layer.state_names`.

            Defaults to `None`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments:
        sequences: A tensor `(batch, timesteps, features)`, or what the cell takes
            with a time axis at 1.
        initial_state: Tensors `(batch, units)`, nested as the cell's `state_size`, or
            a single tensor if there is one state. They are used instead of the owned
            states, for this call; `None`, or `None` as an entry, keeps the owned state.
            Pass `mask` too if there is one: Keras hands an implicit mask only to a
            layer called with a single tensor.
        mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is to be
            skipped. Defaults to `None`.
        training: Python boolean, whether the layer behaves in training mode.
            Defaults to `False`.
        context: What a `Conditional` state is computed from: a tensor `(batch, ...)`
            or a structure of them. Defaults to `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a new sequence
            begins: the row returns to its owned initial state before that timestep is
            read. Or `(batch,)`, for the timestep that is read first. See "Several
            sequences in a row". Defaults to `None`.

    Input shape:
        `(batch, timesteps, features)`. Batch and timesteps may be unknown until the
        call; a stateful layer needs to know its batch size.

    Output shape:
        `(batch, timesteps, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the last states, nested
        as the cell's `state_size`. The dtype is the layer's `compute_dtype`.

    Raises:
        ValueError: If `initial_state` is not as above, does not fit the cell, or is
            not finite; if a state given at a call is not `(batch, units)`; if
            `context` is missing, has not one row for each sequence, or is given to a
            layer without a `Conditional` state; if a batch does not have the size of
            the stream that the layer carries.

    Stateful streams:
        As in `InitStateLSTM`.

    Several sequences in a row:
        With `reset_mask` each sequence of a row is read as if it were alone in a row:
        outputs, last states and gradients are the same. A learned state gets the
        gradient of every sequence, a `Sampled` state is drawn for each sequence, and a
        `Conditional` state is computed from the context of the row, or with
        `over_time=True` from the context of the timestep. The timesteps before the
        first `True` of a row start from the carried state of a stream, or from the
        given `initial_state`. A masked timestep keeps the state, but a reset at a
        masked timestep still counts. With `go_backwards=True`, also in the backward
        layer of an `InitStateBidirectional`, each sequence is read from its own end.
        cuDNN can't reset: with a mask `(batch, timesteps)`, Keras's own loop runs on a
        GPU. `keras_init_lstm.streams.pack()` makes such rows.

    Example:
    >>> cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(3)]
    >>> layer = keras_init_lstm.InitStateRNN(cells, initial_state=["trainable", 0.5])
    >>> tuple(layer(np.zeros((32, 10, 8))).shape)
    (32, 3)
    >>> layer.state_names
    ('cell0_h0', 'cell0_c0', 'cell1_h0')
    """

    # The layer of Keras that this one equals except for its initial state.
    keras_layer: ClassVar[type[keras.layers.RNN]] = keras.layers.RNN

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        *,
        initial_state: InitialStateArgument = None,
        **kwargs: Unpack[RNNArguments],
    ) -> None:
        super().__init__(
            cell,
            return_sequences=return_sequences,
            return_state=return_state,
            go_backwards=go_backwards,
            stateful=stateful,
            unroll=unroll,
            zero_output_for_mask=zero_output_for_mask,
            **kwargs,
        )
        self._make_owned_states(initial_state)

    def _make_owned_states(self, initial_state: InitialStateArgument) -> None:
        """Ends every constructor: makes the owned states."""
        if getattr(keras.config, "is_nnx_enabled", bool)():
            raise ValueError(
                "The layers of this package don't work in the NNX mode of Keras: Flax "
                "would find neither their initial states nor their streams, and so "
                "take the gradients of a learned state for zero. Unset the environment "
                "variable KERAS_NNX_ENABLED. Received: KERAS_NNX_ENABLED=true"
            )
        layout = StateLayout.of(self)
        kinds = self._kinds_of(layout, initial_state)
        for state, kind in getattr(self, "_owned", ()):
            super().__delattr__(state.name)
            if kind is not None:
                forget_layer(self, kind)
        self._layout = layout
        self._owned = OwnedStates(layout, kinds, self._states_of_cell)
        self._stream = Stream(self._owned)
        # Also as attributes `h0` and so on, after which Keras and TensorFlow name the
        # entries of their files.
        for state, kind in self._owned:
            super().__setattr__(state.name, kind)

    def _kinds_of(
        self, layout: StateLayout, initial_state: InitialStateArgument
    ) -> list[InitialState | None]:
        with keras.name_scope(self.name):
            return kinds_of(layout, initial_state, self.dtype_policy, self.trainable)

    def __setattr__(self, name: str, value: Any) -> None:
        # While Keras's constructor runs, the layer owns nothing yet.
        if not (hasattr(self, "_owned") and replace_attribute(self, name, value)):
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        check_may_be_deleted(self, name)
        super().__delattr__(name)

    @classmethod
    def from_keras(
        cls,
        layer: keras.layers.RNN,
        initial_state: InitialStateArgument = None,
        **kwargs: Any,
    ) -> Self:
        """Takes over a layer of Keras, with its weights.

        `layer` is left unchanged, and shares nothing with the new layer. Its cell may
        be of a class that is not registered with Keras. While the states are zero,
        outputs are bit-identical. For that, `InitStateLSTM` is made with
        `use_fused=False`: pass `use_fused="auto"`, or set the attribute later.

        Args:
            layer: A layer of Keras 3, built or not: an `LSTM` for `InitStateLSTM`, a
                `GRU` for `InitStateGRU`, a `SimpleRNN` for `InitStateSimpleRNN`, an
                `RNN` for `InitStateRNN`; or a layer of this package.
            initial_state: As in the constructor. `None` means zeros, as in `layer`;
                for a layer of this package it means the owned states. Defaults to
                `None`.
            **kwargs: Arguments of the constructor that replace the arguments of
                `layer`.

        Returns:
            A layer of the same name, built if `layer` is. If it is stateful, it
            continues the stream. What is frozen stays frozen: in a frozen layer, the
            initial states too. To learn only these, freeze `layer.cell` instead.

        Raises:
            ValueError: If `layer` is of another class, or of a subclass with its own
                computation.

        Example:
        >>> lstm = keras.layers.LSTM(4)
        >>> lstm.build((None, 10, 8))
        >>> layer = keras_init_lstm.InitStateLSTM.from_keras(lstm, "trainable")
        >>> x = np.ones((2, 10, 8))
        >>> bool(keras.ops.all(layer(x) == lstm(x)))
        True
        """
        return taken_over(cls, layer, initial_state, **kwargs)

    @property
    def state_names(self) -> tuple[str, ...]:
        """The names of the states: of an LSTM `("h0", "c0")`."""
        return self._layout.names

    @property
    def state_units(self) -> tuple[int, ...]:
        """The sizes of the states, in the order of `state_names`."""
        return tuple(state.units for state in self._layout.states)

    @property
    def initial_state(self) -> tuple[InitialState | None, ...]:
        """The objects that own the initial states, in order; `None` means zeros."""
        # A tuple, since an entry that is set in a list would be lost.
        return tuple(self._owned.kinds)

    @property
    def takes_context(self) -> bool:
        """Whether an owned initial state is `Conditional`."""
        return self._owned.takes_context

    def build(
        self,
        sequences_shape: tuple[int | None, ...],
        initial_state_shape: Any = None,
        context_shape: Any = None,
    ) -> None:
        batch_size = sequences_shape[0]
        self._check_batch_size(sequences_shape)
        # Before anything else changes, since an encoder may refuse the context.
        known = context_shape is not None
        self._owned.build(specs_of_shapes(context_shape) if known else None)
        if self.stateful and not self._stream.has_begun:
            self._begin_stream(batch_size)
        if isinstance(self.cell, keras.layers.Layer):
            self._build_cell((batch_size, *sequences_shape[2:]))

    def _build_cell(self, shape: tuple[int | None, ...]) -> None:
        def call(inputs: Any) -> Any:
            states = self._layout.pack(self._states_of_cell(ops.shape(inputs)[0]))
            return self.cell(inputs, states)

        if builds_itself(self.cell) and not self.cell.built:
            self.cell.build(shape)
        build_inside(self.cell, call, specs_of_shapes(shape))
        self.cell.built = True

    def _check_batch_size(self, shape: Sequence[int | None]) -> None:
        if self.stateful and shape[0] is None:
            raise ValueError(
                "With `stateful=True` the batch size must be known when the layer is "
                "built: pass `batch_size` to `Input`. "
                f"Received: sequences of shape {tuple(shape)}"
            )
        self._stream.check_batch_size(shape[0])

    def _build_owned(self, context: Any = None, at_once: bool = False) -> None:
        with building, keras.name_scope(self.name):
            self._owned.build(context, at_once)

    def _check_call(
        self,
        sequences: Any,
        initial_state: Any,
        context: Any,
        reset_mask: Any = None,
    ) -> None:
        refuse_legacy(sequences, "sequences")
        refuse_legacy(initial_state, "initial_state")
        refuse_legacy(context, "context")
        refuse_legacy(reset_mask, "reset_mask")
        shape = shape_of(sequences) or ()
        if shape and not self.built:
            self._check_batch_size(shape)
        rows = (*shape, None, None)[:2]
        explicit: Any = self._layout.tensors(initial_state, rows[0])
        if self.stateful:
            self._stream.check_batch_size(rows[0])
        if reset_mask is not None:
            check_reset_mask(reset_mask, rows)
            explicit = None  # All that is owned may be restarted from.
        self._owned.check_context(context, rows, explicit, self.name)

    def call(
        self,
        sequences: Any,
        initial_state: Any = None,
        mask: Any = None,
        training: bool = False,
        context: Any = None,
        reset_mask: Any = None,
    ) -> Any:
        check_loop(self, sequences, mask, training, super().inner_loop)
        # Calls from several threads run one after the other.
        with self._stream.lock if self.stateful else contextlib.nullcontext():
            if self.stateful:
                backend.check_runs_once(
                    f"The stateful layer {self.name}", "the stream has moved on by then"
                )
                sequences = self._stream.with_batch_size(sequences)
            states, starts = self._states_of_call(
                sequences, initial_state, training, context, reset_mask
            )
            if reset_mask is not None:
                states, mask = restarted(
                    self, sequences, states, mask, unwrapped(reset_mask), starts
                )
            return super().call(
                sequences,
                initial_state=self._layout.pack(states),
                mask=mask,
                training=training,
            )

    def _states_of_call(
        self,
        sequences: Any,
        explicit: Any,
        training: bool,
        context: Any,
        reset_mask: Any,
    ) -> tuple[list[Any], list[Any]]:
        """The states that the rows of a call start from, and the ones of a reset."""
        batch_size, timesteps = ops.shape(sequences)[:2]
        explicit = self._layout.tensors(explicit, batch_size, at_run_time=True)
        context = unwrapped(context)
        # All that is owned may be restarted from.
        given = explicit if reset_mask is None else None
        # `__call__()` has checked it before it built anything. But TimeDistributed and
        # `stateless_call()` run `call()` alone.
        self._owned.check_context(context, (batch_size, timesteps), given, self.name)
        training, first = bool(training), first_read(self)
        owned = self._owned.for_batch(batch_size, training, context, given, first)
        states, starts = owned, owned
        if reset_mask is not None:
            pairs = zip(explicit, owned, strict=True)
            states = [own if state is None else state for state, own in pairs]
            starts = self._owned.for_restarts(
                owned, batch_size, timesteps, training, context
            )
        if self.stateful:
            states = self._stream.in_place_of(states, explicit)
        return states, starts

    def inner_loop(
        self,
        sequences: Any,
        initial_state: Any,
        mask: Any,
        training: bool = False,
    ) -> Any:
        of_keras = super().inner_loop
        return run_loop(self, sequences, initial_state, mask, training, of_keras)

    @property
    def variables(self) -> list[keras.Variable]:
        """The variables of the layer, on JAX with the variables of the stream.

        A training step on JAX is a pure function of the variables of a model, so
        `fit()` keeps only changes of these.
        """
        variables: list[keras.Variable] = super().variables
        if backend.returns_changed_variables:
            variables = variables + self._stream.variables
        return variables

    def reset_state(self) -> None:
        """Resets the stream to the owned initial state."""
        self._stream.restart()

    def reset_states(
        self, states: Sequence[Any] | None = None, rows: Any = None
    ) -> None:
        """Resets the stream to the owned initial state, or to the given states.

        Args:
            states: List of arrays `(batch, units)` (for an LSTM, h and c), nested as
                the cell's `state_size`, that the next call starts from, also the first
                call. With `rows`, each array has one row for each of them. `None` as an
                entry, or for all, means the owned initial state. Defaults to `None`.
            rows: Which rows of the batch to reset: integers, or booleans `(batch,)`.
                Defaults to `None`, all.

        Raises:
            ValueError: If the layer is not stateful, if `rows` are not rows of the
                batch, or if an array is not finite or has another shape. The carried
                states are then unchanged.

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
        given = self._stream.given(states, rows, self.compute_dtype)
        arrays, chosen, batch_size = given
        if batch_size is not None:
            self._stream_of(batch_size).restart(arrays, chosen)

    def _begin_stream(self, batch_size: Any) -> None:
        self._stream.begin(batch_size, self.variable_dtype)
        # Past Keras, which would turn the list into a list of another class.
        object.__setattr__(self, "states", self._layout.pack(self._stream.states))
        # A checkpoint of TensorFlow holds a stream under this name.
        self._carried = backend.trackable(
            {state.name: state.variables for state in self._stream.states}
        )

    def _stream_of(self, batch_size: int) -> Stream:
        """The stream, which begins if it has not."""
        if not self._stream.has_begun:
            self._build_owned()
            with keras.name_scope(self.name):
                self._begin_stream(batch_size)
        return self._stream

    def _carry_on(self, states: Any) -> None:
        """Carries what another layer carries in its `states`."""
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
            training: Python boolean, whether as in training (a `Sampled` state is
                then drawn) or as at inference. Defaults to `False`.
            context: What a `Conditional` state is computed from, as at a call.
                Defaults to `None`.

        Returns:
            List of tensors `(batch_size, units)` of dtype `compute_dtype`: for an LSTM,
            h and c; for a stack of cells, a list for each cell.

        Raises:
            ValueError: If `batch_size` is not one, or if `context` is missing, or not
                used by any state.
        """
        check_batch_size(batch_size)
        context = lists_as_arrays(context)
        self._owned.check_context(context, (batch_size, None), None, self.name)
        self._build_owned(specs_of(context))
        states = self._owned.for_batch(
            batch_size, training, context, first_timestep=first_read(self)
        )
        states = [ops.cast(state, self.compute_dtype) for state in states]
        return self._layout.pack(states)

    def assign_initial_state(self, states: Sequence[Any]) -> None:
        """Overwrites the owned initial states.

        Args:
            states: List of arrays (for an LSTM, h and c), nested as the cell's
                `state_size`, each of shape `(units,)` or `(batch, units)`. The mean is
                taken over the batch, so the final states of one layer can be the
                initial state of another. `None` as an entry leaves that state
                unchanged. For a `Sampled` state, the mean is overwritten.

        Raises:
            ValueError: If an array is of another shape or not finite, or if the
                state is not owned (`initial_state=None`). Nothing is then changed.

        Example:
        >>> encoder = keras.layers.LSTM(4, return_state=True)
        >>> _, h, c = encoder(np.ones((8, 5, 3)))
        >>> decoder = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
        >>> decoder.assign_initial_state([h, c])
        """
        self._build_owned()
        arrays = self._layout.unpack(states, "states")
        self._owned.assign(arrays, self.compute_dtype)

    def get_config(self) -> dict[str, Any]:
        entries = [
            kind and keras.saving.serialize_keras_object(kind)
            for kind in self._owned.kinds
        ]
        initial_state = self._layout.pack(entries) if any(entries) else None
        return {
            **super().get_config(),
            **arguments_of_loop(self),
            "initial_state": initial_state,
        }
