"""Recurrent layers around any cell that own their initial state."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import keras
from keras import ops

from keras_init_lstm._checks import (
    check_batch_size,
    described,
    refuse_legacy,
    shape_of,
)
from keras_init_lstm._copies import (
    build_inside,
    builds_itself,
    hand_over,
    specs_of_shapes,
)
from keras_init_lstm._keras import forget_layer
from keras_init_lstm._types import Numbers, RNNArguments
from keras_init_lstm.backend import backend
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.layout import StateLayout
from keras_init_lstm.initial_states.owned import OwnedStates, kinds_of
from keras_init_lstm.layers._call import (
    TakesContext,
    building,
    lists_as_arrays,
    specs_of,
    unwrapped,
)
from keras_init_lstm.layers._from_keras import (
    check_can_take_over,
    hand_over_initial_states,
    unbuilt,
)
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
from keras_init_lstm.layers._stream import CarriesStream, Stream

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
class InitStateRNN(TakesContext, CarriesStream, keras.layers.RNN):
    """Recurrent layer around any cell that owns its initial state.

    It is `keras.layers.RNN` but for what a sequence starts from: states that the
    layer owns and repeats for each row of the batch,

        InitStateRNN(cell)(x) == RNN(cell)(x, initial_state=states)

    with `states` the owned ones tiled to `(batch, units)`. Without `initial_state` it
    has the weights, the outputs and the summary of an `RNN`. `InitStateLSTM`,
    `InitStateGRU` and `InitStateSimpleRNN` are subclasses of it.

    Args:
        cell: An RNN cell, or a list of them, which are stacked.
        return_sequences: This and the next as in `keras.layers.RNN`.
        return_state: As in `keras.layers.RNN`.
        go_backwards: As in `keras.layers.RNN`.
        stateful: As in `keras.layers.RNN`; see "Stateful streams".
        unroll: As in `keras.layers.RNN`.
        zero_output_for_mask: As in `keras.layers.RNN`.
        initial_state: What each sequence starts from. One entry, used for every
            state (each then owns its own variables), or a list that is nested as the
            cell's `state_size`, in which one entry may stand for all the states of a
            cell. An entry is one of:

            - `None` or `"zeros"`: what the cell starts from by itself, which is zeros
              unless it has a `get_initial_state()` of its own.
            - A number or an array of shape `(units,)`: `Fixed` at that value.
            - `"fixed"`, `"sampled"` or `"trainable"`: the object with its defaults.
            - A `Fixed`, `Sampled`, `Trainable` or `Conditional` object, or one of
              another subclass of `InitialState`, which is copied; the layer's own are
              in `layer.initial_state`, in the order of `layer.state_names`.

            Defaults to `None`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments:
        sequences: A tensor `(batch, timesteps, features)`, or what the cell takes
            with a time axis at 1.
        initial_state: Tensors `(batch, units)`, nested as the cell's `state_size`, or
            a single one if there is one state, that are used instead of the owned
            states, for this call; `None`, or `None` as an entry, keeps the owned.
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
            read. Or `(batch,)`, for what is read first. See "Sequences that follow
            each other". Defaults to `None`.

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
        As with `InitStateLSTM`.

    Sequences that follow each other:
        With `reset_mask` the sequences of a row are read as if each were a row by
        itself: outputs, last states and gradients are the same. A learned state gets
        the gradient of every sequence, a `Sampled` one is drawn anew for each, and a
        `Conditional` one is computed from the context of the row, or with
        `over_time=True` from that of the timestep. What is carried by a stream, or
        given as `initial_state`, is what the timesteps before the first `True` of a
        row start from. A masked timestep carries the state on, but a restart there
        still counts. With `go_backwards=True`, and so in the backward layer of an
        `InitStateBidirectional`, each sequence is read from its own end. cuDNN can't
        restart: where a `(batch, timesteps)` is given, Keras's own loop runs on a GPU.
        `keras_init_lstm.streams.pack()` lays sequences out that way.

    Example:
    >>> cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(3)]
    >>> layer = keras_init_lstm.InitStateRNN(cells, initial_state=["trainable", 0.5])
    >>> tuple(layer(np.zeros((32, 10, 8))).shape)
    (32, 3)
    >>> layer.state_names
    ('cell0_h0', 'cell0_c0', 'cell1_h0')
    """

    # The layer of Keras that this one is but for its initial state.
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
        """Ends every constructor: makes what the layer owns of its states."""
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
        if not hasattr(self, "_owned"):
            super().__setattr__(name, value)
        elif name == "initial_state" or name in self.state_names:
            self._replace_initial_state(name, value)
        elif name == "cell":
            self._replace_cell(value)
        elif name == "states":
            raise ValueError(
                f"The attribute `states` of {self.name} can't be set. Call "
                "`reset_states(states=...)`, which lets a stateful layer start from "
                f"given states. Received: states={described(value)}"
            )
        elif name == "stateful" and value and self.built and not self._running_stream:
            raise ValueError(
                f"The attribute `stateful` of {self.name}, which is built, can't be "
                "set. `as_stateful(model, batch_size)` makes a stateful copy of a "
                f"model. Received: stateful={described(value)}"
            )
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if name == "states" or name in self.state_names:
            raise AttributeError(
                f"The attribute `{name}` of {self.name} can't be deleted."
                + ("" if name == "states" else " Set it to None for zeros.")
            )
        super().__delattr__(name)

    @property
    def _is_built_in_part(self) -> bool:
        # States may be built, and a stream may have begun, before their layer is.
        any_kind = any(kind is not None and kind.built for kind in self.initial_state)
        return self.built or any_kind or self._running_stream is not None

    def _replace_cell(self, cell: Any) -> None:
        # Keras refuses what is no cell, and tells the states of what is one.
        rnn = keras.layers.RNN(cell, name=self.name)
        layout, kinds, replaced = StateLayout.of(rnn), self.initial_state, self.cell
        initial_state = self._layout.pack(kinds) if any(kinds) else None
        if not self._is_built_in_part:
            self._kinds_of(layout, initial_state)  # What is refused changes nothing.
        elif layout.state_size != self._layout.state_size:
            raise ValueError(
                f"The attribute `cell` of {self.name}, whose states are built, can't "
                "be set to a cell with other states. Expected: "
                f"state_size={self._layout.state_size}. "
                f"Received: {described(cell)} with state_size={layout.state_size}"
            )
        super().__setattr__("cell", rnn.cell)
        if rnn.cell is not replaced:
            forget_layer(self, replaced)
        self.state_size, self.single_state = rnn.state_size, rnn.single_state
        if not self._is_built_in_part:
            self._make_owned_states(initial_state)

    def _replace_initial_state(self, name: str, value: Any) -> None:
        kinds = list(self.initial_state)
        if self._is_built_in_part:
            raise ValueError(
                f"The attribute `{name}` of {self.name}, which is built, can't be set. "
                "`assign_initial_state()` overwrites the values that it owns, and "
                "`from_keras(layer, initial_state)` makes a layer with other initial "
                f"states. Received: {name}={described(value)}"
            )
        if name == "initial_state":
            self._make_owned_states(value)
        else:
            kinds[self.state_names.index(name)] = value
            self._make_owned_states(self._layout.pack(kinds))

    @property
    def _stream_in_use(self) -> Stream | None:
        return self._running_stream if self.stateful else None

    @classmethod
    def from_keras(
        cls,
        layer: keras.layers.RNN,
        initial_state: InitialStateArgument = None,
        **kwargs: Any,
    ) -> Self:
        """Takes over a layer of Keras, with its weights.

        The layer itself is left as it is, and shares nothing with the new one. Its
        cell may be of a class that is not registered with Keras. While the states are
        zero, outputs are equal to the last bit, for which `InitStateLSTM` is made with
        `use_fused=False`: pass `use_fused="auto"`, or set the attribute later.

        Args:
            layer: A layer of Keras 3, built or not: of `InitStateLSTM` an `LSTM`, of
                `InitStateGRU` a `GRU`, of `InitStateSimpleRNN` a `SimpleRNN`, of
                `InitStateRNN` an `RNN`; or one of this package.
            initial_state: As in the constructor. `None` means zeros, as in `layer`,
                and of a layer of this package the owned states. Defaults to `None`.
            **kwargs: Arguments of the constructor, in place of those of `layer`.

        Returns:
            A layer of the same name, built if `layer` is, which goes on with its
            stream if it is stateful. What is frozen stays so: with the whole layer,
            its initial states too. To learn only these, freeze `layer.cell` instead.

        Raises:
            ValueError: If `layer` is of another class, or of a subclass that computes
                something of its own.

        Example:
        >>> lstm = keras.layers.LSTM(4)
        >>> lstm.build((None, 10, 8))
        >>> layer = keras_init_lstm.InitStateLSTM.from_keras(lstm, "trainable")
        >>> x = np.ones((2, 10, 8))
        >>> bool(keras.ops.all(layer(x) == lstm(x)))
        True
        """
        check_can_take_over(cls, layer)
        arguments = dict(kwargs)
        if initial_state is not None:
            arguments["initial_state"] = initial_state
        taken = unbuilt(layer, cls, **arguments)
        taken.supports_masking = layer.supports_masking
        if type(taken.cell) is not type(layer.cell):
            raise ValueError(
                f"Argument `layer` must have a cell {type(taken.cell).__name__}, as "
                f"`{cls.keras_layer.__name__}` makes it. `InitStateRNN(cell)` takes "
                f"any. Received: {described(layer)} with {described(layer.cell)}"
            )
        if layer.built:
            taken.build_from_config(layer.get_build_config())
            taken.built = True
            hand_over(layer.cell, taken.cell)
            taken.cell.trainable = kwargs.get("trainable", layer.cell.trainable)
        # States may be built, and have been assigned to, before their layer is.
        taken._build_owned()
        if initial_state is None:
            hand_over_initial_states(layer, taken)
        taken._go_on_from(layer.states)
        return taken

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
        """The objects that own the initial states, in order; `None` for zeros."""
        # A tuple: an entry set in a list would be lost. Set the whole, or `layer.h0`.
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
        if self.stateful and self._running_stream is None:
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
        if self._running_stream is not None:
            self._running_stream.check_batch_size(shape[0])

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
        if self._stream_in_use is not None:
            self._stream_in_use.check_batch_size(rows[0])
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
        stream = self._stream_in_use
        # Of calls from several threads each goes on from the one before.
        with stream.lock if stream else contextlib.nullcontext():
            if stream is not None:
                backend.check_runs_once(
                    f"The stateful layer {self.name}", "the stream has moved on by then"
                )
                sequences = stream.with_batch_size(sequences)
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
        """What the rows of a call start from, and what from if they restart."""
        batch_size, timesteps = ops.shape(sequences)[:2]
        explicit = self._layout.tensors(explicit, batch_size, at_run_time=True)
        context = unwrapped(context)
        # All that is owned may be restarted from.
        given = explicit if reset_mask is None else None
        # `__call__()` has checked it too, but TimeDistributed calls `call()` directly.
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
        if self._stream_in_use is not None:
            states = self._stream_in_use.in_place_of(states, explicit)
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
            List of tensors `(batch_size, units)` of dtype `compute_dtype`, nested as
            the cell's `state_size`; of an LSTM, h and c.

        Raises:
            ValueError: If `batch_size` is none, or if `context` is missing, or not
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
            states: List of arrays (of an LSTM, h and c), nested as the cell's
                `state_size`, each of shape `(units,)`, or `(batch, units)`, of which
                the mean over the batch is taken: the final states of one layer can
                start another. `None` as an entry leaves that state. Of a `Sampled`
                state, the mean is overwritten.

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
