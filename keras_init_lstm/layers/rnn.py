"""Recurrent layers around any cell that own their initial state."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import keras
from keras import ops

from keras_init_lstm._checks import (
    refuse_legacy,
    shape_of,
)
from keras_init_lstm._copies import (
    build_inside,
    builds_itself,
    specs_of_shapes,
)
from keras_init_lstm._types import RNNArguments
from keras_init_lstm.backend import backend
from keras_init_lstm.initial_states.owned import (
    as_argument,
    refuse_initial_state,
)
from keras_init_lstm.layers._call import (
    unwrapped,
)
from keras_init_lstm.layers._from_keras import taken_over
from keras_init_lstm.layers._loop import (
    arguments_of_loop,
    check_loop,
    run_call,
    run_loop,
)
from keras_init_lstm.layers._owns_states import (
    InitialStateArgument,
    OwnsStates,
)
from keras_init_lstm.layers._resets import (
    check_reset_mask,
    first_timestep,
    with_resets,
)
from keras_init_lstm.layers._states_over_time import states_over_time

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateRNN(OwnsStates, keras.layers.RNN):
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
            `state_size`. In the list, one entry may be used for all the states of a
            cell. An entry is one of:

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
        sequences: A tensor `(batch, timesteps, features)`, or for a cell whose inputs
            have more axes `(batch, timesteps, ...)`.
        initial_state: Tensors `(batch, units)`, nested as the cell's `state_size`, or
            a single tensor if there is one state. They are used instead of the owned
            states, for this call; `None`, or `None` as an entry, keeps the owned state.
            Or a dictionary with a tensor for each state, named `"h0"` or, as in
            `get_states()` and `estimate_initial_state()`, `"lstm/h0"`. Pass `mask` too
            if there is one: Keras hands an implicit mask only to a layer called with a
            single tensor.
        mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is skipped.
            Defaults to `None`.
        training: Python boolean, whether the layer is called in training mode.
            Defaults to `False`.
        context: The tensor `(batch, ...)`, or structure of tensors, from which a
            `Conditional` state is computed. Defaults to `None`.
        reset_mask: Boolean tensor `(batch, timesteps)`, `True` where a new sequence
            begins: the row returns to its owned initial state before that timestep is
            read. Or a boolean tensor `(batch,)`, for the timestep that is read first.
            See "Several sequences in a row". Defaults to `None`.

    Input shape:
        `(batch, timesteps, features)`. Batch and timesteps may be unknown until the
        call; a stateful layer needs to know its batch size.

    Output shape:
        `(batch, timesteps, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the last states, nested
        as the cell's `state_size`. The dtype is the layer's `compute_dtype`.

    Raises:
        ValueError: If `initial_state` is not as above, does not fit the cell, or is
            not finite. At a call, if a given state is not `(batch, units)`; if
            `context` is missing, does not have one row for each sequence, or is given
            to a layer without a `Conditional` state; if `reset_mask` is not boolean or
            has another shape; or if the batch size differs from the batch size of the
            stream that the layer carries.

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
        Keras's call of cuDNN can't reset: with a reset mask `(batch, timesteps)`,
        Keras's own loop runs on a GPU. `keras_init_lstm.streams.pack()` packs several
        sequences in a row.

    Example:
    >>> cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(3)]
    >>> layer = keras_init_lstm.InitStateRNN(cells, initial_state=["trainable", 0.5])
    >>> tuple(layer(np.zeros((32, 10, 8))).shape)
    (32, 3)
    >>> layer.state_names
    ('cell0_h0', 'cell0_c0', 'cell1_h0')
    """

    # The Keras layer that this class extends.
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
        refuse_initial_state(return_sequences, "return_sequences")
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

    @classmethod
    def from_keras(
        cls,
        layer: keras.layers.RNN,
        initial_state: InitialStateArgument = None,
        **kwargs: Any,
    ) -> Self:
        """Creates a layer from a layer of Keras, with its arguments and weights.

        `layer` is left unchanged, and shares nothing with the new layer. Its cell may
        be of a class that is not registered with Keras. While the initial states are
        zero, outputs are bit-identical, because the new layer has `use_fused=False`.
        For the fused loop, pass `use_fused="auto"`, or set the attribute later.

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
            A layer with the same name, built if `layer` is. If it is stateful, it
            continues the stream of `layer`. Frozen weights stay frozen. The initial
            states of a frozen layer are frozen too: to learn only these, freeze
            `layer.cell` instead.

        Raises:
            ValueError: If `layer` is of another class, is of a subclass that computes
                something else, or has a cell of another class than its class creates;
                or if an argument of the constructor is wrong.

        Example:
        >>> lstm = keras.layers.LSTM(4)
        >>> lstm.build((None, 10, 8))
        >>> layer = keras_init_lstm.InitStateLSTM.from_keras(lstm, "trainable")
        >>> x = np.ones((2, 10, 8))
        >>> bool(keras.ops.all(layer(x) == lstm(x)))
        True
        """
        return taken_over(cls, layer, initial_state, **kwargs)

    def build(
        self,
        sequences_shape: tuple[int | None, ...],
        initial_state_shape: Any = None,
        context_shape: Any = None,
    ) -> None:
        batch_size = sequences_shape[0]
        self._check_batch_size(sequences_shape)
        # Build the owned states before anything else changes: an encoder may raise an
        # error for the context.
        self._owned.layout = self._layout_for(sequences_shape)
        has_context = context_shape is not None
        self._owned.build(specs_of_shapes(context_shape) if has_context else None)
        if self.stateful and not self._stream.has_begun:
            self._create_stream(batch_size)
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

    def _check_call(
        self,
        sequences: Any,
        initial_state: Any,
        context: Any,
        reset_mask: Any = None,
        reads_stream: bool = True,
    ) -> None:
        refuse_legacy(sequences, "sequences")
        refuse_legacy(initial_state, "initial_state")
        refuse_legacy(context, "context")
        refuse_legacy(reset_mask, "reset_mask")
        shape = shape_of(sequences) or ()
        if shape and not self.built:
            self._check_batch_size(shape)
        batch_size, timesteps = (*shape, None, None)[:2]
        layout = self._layout_for(shape) if shape else self._layout
        explicit: Any = layout.tensors(initial_state, batch_size)
        if self.stateful and reads_stream:
            self._stream.check_batch_size(batch_size)
        if reset_mask is not None:
            check_reset_mask(reset_mask, batch_size, timesteps)
            explicit = None  # A reset needs the owned states.
        self._owned.check_context(context, batch_size, timesteps, explicit, self.name)

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
        # Calls of a stateful layer from several threads run one after another.
        with self._stream.lock if self.stateful else contextlib.nullcontext():
            if self.stateful:
                backend.check_runs_once(
                    f"The stateful layer {self.name}", "its states have changed by then"
                )
                sequences = self._stream.with_batch_size(sequences)
            states, states_after_reset = self._states_of_call(
                sequences, initial_state, training, context, reset_mask
            )
            if self.stateful:
                explicit = self._layout.unpack(initial_state, "initial_state")
                states = self._stream.states_before_call(states, explicit)
            if reset_mask is not None:
                states, mask = with_resets(
                    self,
                    sequences,
                    states,
                    mask,
                    unwrapped(reset_mask),
                    states_after_reset,
                )
            return run_call(
                self,
                sequences,
                self._layout.pack(states),
                mask,
                training,
                super().call,
                super().inner_loop,
                InitStateRNN.inner_loop,
            )

    def _states_of_call(
        self,
        sequences: Any,
        explicit: Any,
        training: bool,
        context: Any,
        reset_mask: Any,
    ) -> tuple[list[Any], list[Any]]:
        """Returns the states before the first timestep, and the states after a reset.

        They do not depend on a stream. Both lists have one entry for each state. The
        second is as in `InPlaceOfMask`.
        """
        batch_size, timesteps = ops.shape(sequences)[:2]
        explicit = self._layout.tensors(explicit, batch_size, at_run_time=True)
        context = unwrapped(context)
        # A reset needs the owned states.
        replaced = explicit if reset_mask is None else None
        # `__call__()` checks the context before it builds anything. But
        # `TimeDistributed` and `stateless_call()` run `call()` alone.
        self._owned.check_context(context, batch_size, timesteps, replaced, self.name)
        training, first = bool(training), first_timestep(self)
        owned = self._owned.for_batch(batch_size, training, context, replaced, first)
        states, states_after_reset = owned, owned
        if reset_mask is not None:
            pairs = zip(explicit, owned, strict=True)
            states = [own if state is None else state for state, own in pairs]
            states_after_reset = self._owned.for_resets(
                owned, batch_size, timesteps, training, context
            )
        return states, states_after_reset

    def inner_loop(
        self,
        sequences: Any,
        initial_state: Any,
        mask: Any,
        training: bool = False,
    ) -> Any:
        keras_loop = super().inner_loop
        return run_loop(self, sequences, initial_state, mask, training, keras_loop)

    def states_over_time(
        self,
        sequences: Any,
        mask: Any = None,
        initial_state: Any = None,
        context: Any = None,
        reset_mask: Any = None,
        training: bool = False,
    ) -> list[Any]:
        """Returns all states after each timestep.

        A call returns only the last states, and of all outputs only h. Without a mask
        and dropout, the fused loop runs a GRU and a SimpleRNN, whose only state is the
        output. Else Keras's loop runs the cell, whatever `use_fused` is. The result is
        differentiable. A stateful layer neither reads nor changes its stream: the
        sequences start from the owned initial states, and the batch size may differ.

        Args:
            sequences: A tensor `(batch, timesteps, features)`. In a Functional model,
                call this method in the `call()` of a layer.
            mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is
                skipped: the states are then the states before it. Defaults to `None`,
                the implicit mask of `sequences` if there is one.
            initial_state: This and the next three as in a call.
            context: As in a call.
            reset_mask: As in a call.
            training: As in a call.

        Returns:
            List of tensors `(batch, timesteps, units)` of dtype `compute_dtype`: for an
            LSTM, h and c; for a stack of cells, a list for each cell. The timesteps are
            in the order in which the layer reads them, as in its outputs: with
            `go_backwards=True` the first one belongs to the last timestep of
            `sequences`.

        Raises:
            ValueError: If `mask` has another shape, if `sequences` is a symbolic
                tensor of Keras, or as in a call.

        Example:
        >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
        >>> h, c = layer.states_over_time(np.ones((2, 5, 3)))
        >>> tuple(c.shape)
        (2, 5, 4)
        """
        return states_over_time(
            self,
            sequences,
            mask,
            initial_state,
            context,
            reset_mask,
            training,
            super().inner_loop,
        )

    def get_config(self) -> dict[str, Any]:
        initial_state = None
        if any(self._owned.kinds):
            initial_state = keras.tree.map_structure(
                lambda kind: kind and keras.saving.serialize_keras_object(kind),
                as_argument(self._layout, self._owned.kinds),
            )
        return {
            **super().get_config(),
            **arguments_of_loop(self),
            "initial_state": initial_state,
        }
