"""Where a state starts, and how it is carried: what all the recurrent layers share."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_init_lstm import initial_states
from keras_init_lstm.copies import arguments_of, copy_layer, forgotten, hand_over
from keras_init_lstm.initial_states import fits, shape_text


class _CarriedState(keras.Variable):
    """One state of a stream: what the next call of a stateful layer starts from.

    Until something is assigned to it, it is fresh, and reads as the initial state
    that the layer owns.
    """

    def __init__(self, layer: "InitStateRNN", index: int, batch_size: int) -> None:
        self._layer = layer
        self._index = index
        self._fresh = keras.Variable(
            "ones", shape=(), dtype="bool", trainable=False, name="fresh"
        )
        super().__init__(
            "zeros",
            shape=(batch_size, layer.state_units[index]),
            dtype=layer.variable_dtype,
            trainable=False,
            name="rnn_state",
        )

    @property
    def value(self) -> tf.Tensor:
        return self.or_start(self._layer._shown_start(self._index, self.shape[0]))

    def tf_variables(self) -> list[tf.Variable]:
        """The variables of TensorFlow behind it; none while Keras defers them."""
        values = (super().value, self._fresh.value)
        return [value for value in values if isinstance(value, tf.Variable)]

    def or_start(self, start: tf.Tensor) -> tf.Tensor:
        """Returns what was carried, or `start` while the stream is fresh."""
        carried = super().value
        return ops.where(self._fresh, ops.cast(start, carried.dtype), carried)

    def assign(self, value: Any) -> tf.Tensor:
        value = super().assign(value)
        # Not before the value is there: a graph that fails must change nothing.
        with tf.control_dependencies([value]):
            self._fresh.assign(False)
        return value

    def restart(self) -> None:
        self._fresh.assign(True)

    @property
    def fresh(self) -> bool:
        return bool(self._fresh.numpy())

    def __repr__(self) -> str:
        return f"<Variable path={self.path}, dtype={self.dtype}, value={self.value}>"


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateRNN(keras.layers.RNN):
    """Recurrent layer around any cell that owns its initial state.

    It is `keras.layers.RNN` but for what a sequence starts from: states that the
    layer owns and repeats for each row of the batch,

        InitStateRNN(cell)(x) == RNN(cell)(x, initial_state=states)

    with `states` the owned ones tiled to `(batch, units)`. Without `initial_state` it
    has the weights, the outputs and the summary of an `RNN`. `InitStateLSTM`,
    `InitStateGRU` and `InitStateSimpleRNN` are subclasses of it.

    Args:
        cell: An RNN cell, or a list of them, which are stacked.
        *args: The other arguments of `keras.layers.RNN`, in its order.
        initial_state: What each sequence starts from. One entry, used for every
            state (each then owns its own variables), or a list that is nested as the
            cell's `state_size`, in which one entry may stand for all the states of a
            cell. An entry is one of:

            - `None` or `"zeros"`: what the cell starts from by itself, which is zeros
              unless it has a `get_initial_state()` of its own.
            - A number or an array of shape `(units,)`: `Fixed` at that value.
            - `"fixed"`, `"sampled"` or `"trainable"`: the object with its defaults.
            - A `Fixed`, `Sampled`, `Trainable` or `Conditional` object, which is
              copied; the layer's own are in `layer.initial_state`, a list in the
              order of `layer.state_names`.

            Defaults to `None`.
        **kwargs: The keyword arguments of `keras.layers.RNN`.

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
            `context` is missing, or given to a layer without a `Conditional` state;
            if a batch does not have the size of the stream that the layer carries.

    Stateful streams:
        As with `InitStateLSTM`.

    Example:
    >>> cells = [keras.layers.LSTMCell(4), keras.layers.GRUCell(3)]
    >>> layer = keras_init_lstm.InitStateRNN(cells, initial_state=["trainable", 0.5])
    >>> layer(np.zeros((32, 10, 8))).shape
    TensorShape([32, 3])
    >>> layer.state_names
    ('cell0_h0', 'cell0_c0', 'cell1_h0')
    """

    def __init__(self, *args: Any, initial_state: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.state_names = _state_names(self.cell)
        self.state_units = tuple(keras.tree.flatten(self.state_size))
        entries = self._per_state(initial_state, "initial_state", one_for_all=True)
        # As attributes, since both Keras and TensorFlow find the entries of their
        # files by the names of attributes; in a list they would have none.
        for name, units, entry in zip(
            self.state_names, self.state_units, entries, strict=True
        ):
            setattr(self, name, self._own(name, units, entry))

    @classmethod
    def from_rnn(
        cls, rnn: keras.layers.RNN, initial_state: Any = None, **kwargs: Any
    ) -> "InitStateRNN":
        """Takes over a `keras.layers.RNN`, with its weights.

        The layer itself is left as it is, and shares nothing with the new one. Its
        cell may be of a class that is not registered with Keras.

        Args:
            rnn: A layer `RNN` of Keras 3, built or not.
            initial_state: As in the constructor. `None` means zeros, as in `rnn`, and
                of a layer of this package the owned states. Defaults to `None`.
            **kwargs: Arguments of the constructor, in place of those of `rnn`.

        Returns:
            A layer of the same name, built if `rnn` is, which goes on with its stream
            if it is stateful. What is frozen stays so: with the whole layer, its
            initial states too. To learn only these, freeze `layer.cell` instead.

        Raises:
            ValueError: If `rnn` is not an `RNN` of Keras 3.

        Example:
        >>> rnn = keras.layers.RNN(keras.layers.LSTMCell(4))
        >>> keras_init_lstm.InitStateRNN.from_rnn(rnn, "trainable").state_names
        ('h0', 'c0')
        """
        return cls._taken_over("rnn", rnn, keras.layers.RNN, initial_state, kwargs)

    @classmethod
    def _taken_over(
        cls,
        argument: str,
        layer: Any,
        expected: Any,
        initial_state: Any,
        kwargs: dict[str, Any],
    ) -> Any:
        if not isinstance(layer, expected):
            raise ValueError(
                f"Argument `{argument}` must be a layer `{expected.__name__}` of "
                f"Keras 3. Received: {initial_states.received(layer)}"
            )
        arguments = {**arguments_of(layer), **forgotten(layer)}
        if "cell" in arguments:
            arguments["cell"] = copy_layer(layer.cell)
        adopts_states = initial_state is None and isinstance(layer, InitStateRNN)
        if adopts_states:
            initial_state = layer._nested(layer.initial_state)
        arguments["initial_state"] = initial_state
        taken = cls(**{**arguments, **kwargs})
        if layer.built:
            taken.build_from_config(layer.get_build_config())
            taken.built = True
        pairs: list[Any] = [(layer.cell, taken.cell)]
        if adopts_states and layer.built:
            pairs += zip(layer.initial_state, taken.initial_state, strict=True)
        for ours, theirs in pairs:
            if ours is not None:
                hand_over(ours, theirs)
        carried = keras.tree.flatten(layer.states) if layer.states else []
        states = [
            None if getattr(state, "fresh", not np.any(state)) else np.array(state)
            for state in carried
        ]
        if taken.stateful and any(state is not None for state in states):
            taken.reset_states(taken._nested(states))
        return taken

    @property
    def initial_state(self) -> list[initial_states.InitialState | None]:
        """The objects that own the initial states, in order; `None` for zeros."""
        return [getattr(self, name) for name in self.state_names]

    def _own(
        self, name: str, units: int, entry: Any
    ) -> initial_states.InitialState | None:
        try:
            given = initial_states.get(entry)
            if given is None:
                return None
            owned = given.copy(name=name, dtype=self.dtype_policy)
            owned.check(units)
        except ValueError as error:
            raise ValueError(
                f"Argument `initial_state`, for {name}: {error}"
            ) from error
        if not self.trainable:
            owned.trainable = False
        return owned

    def __call__(self, *args: Any, context: Any = None, **kwargs: Any) -> Any:
        # Checked here, before anything is built, traced or carried.
        sequences: Any = args[0] if args else kwargs.get("sequences")
        given = args[1] if len(args) > 1 else kwargs.get("initial_state")
        self._check_call(sequences, given, context)
        if given is not None:
            # Keras 3.12 and before build no layer that is given None among tensors.
            _build(self, sequences, context)
        if context is not None:
            kwargs["context"] = hide_context(self, sequences, context)
        return super().__call__(*args, **kwargs)

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        # Nor does it take their shapes, on which the outputs do not depend.
        return super().compute_output_spec(sequences)

    def build(
        self,
        sequences_shape: tuple[int | None, ...],
        initial_state_shape: Any = None,
        context_shape: Any = None,
    ) -> None:
        batch_size = sequences_shape[0]
        self._check_stream(batch_size)
        if self.stateful and batch_size is None:
            raise ValueError(
                "With `stateful=True` the batch size must be known when the layer is "
                "built: pass `batch_size` to `Input`. "
                f"Received: sequences of shape {tuple(sequences_shape)}"
            )
        # First, since an encoder may refuse the context.
        self._build_initial_state(context_shape)
        if self.stateful and self.states is None and batch_size is not None:
            self._create_states(batch_size)
        if isinstance(self.cell, keras.layers.Layer) and not self.cell.built:
            self.cell.build((batch_size, *sequences_shape[2:]))
            self.cell.built = True

    def _build_initial_state(self, context_shape: Any = None) -> None:
        entries: list[Any] = self.initial_state
        for entry, units in zip(entries, self.state_units, strict=True):
            if entry is not None and entry.takes_context:
                if not (entry.built and entry.encoder.built):
                    entry.build((units,), context_shape)
            elif entry is not None and not entry.built:
                entry.build((units,))

    def _create_states(self, batch_size: int) -> None:
        states = [
            _CarriedState(self, index, batch_size)
            for index in range(len(self.state_units))
        ]
        # Past `__setattr__`, which would make weights of them: as in Keras, the
        # states of a stream are neither counted nor saved with the model.
        self.__dict__["states"] = self._nested(states)
        # For what TensorFlow saves, `tf.train.Checkpoint` and SavedModel, which must
        # know of every variable: Keras does not look into a module.
        self._stream = tf.Module()
        for state, name in zip(states, self.state_names, strict=True):
            setattr(self._stream, name, state.tf_variables())

    def call(
        self,
        sequences: tf.Tensor,
        initial_state: Any = None,
        mask: tf.Tensor | None = None,
        training: bool = False,
        context: Any = None,
    ) -> Any:
        if self.stateful:
            sequences = self._with_stream_check(sequences)
        states = self.starts(ops.shape(sequences)[0], initial_state, training, context)
        return super().call(
            sequences, initial_state=states, mask=mask, training=training
        )

    def starts(
        self, batch_size: Any, given: Any, training: bool, context: Any
    ) -> list[Any]:
        """What the rows of a call start from, nested as the cell's `state_size`."""
        states = self._per_state(given, "initial_state")
        carried = self._carried
        of_cell = None
        for index, (state, entry) in enumerate(
            zip(states, self.initial_state, strict=True)
        ):
            if state is not None:
                states[index] = self._with_shape_check(index, state, batch_size)
                continue
            if entry is None:
                # A cell makes all of its states at once.
                of_cell = of_cell or self._cell_starts(batch_size)
                start = of_cell[index]
            else:
                start = self._start(index, batch_size, training, context)
            states[index] = carried[index].or_start(start) if carried else start
        return self._nested(states)

    def _cell_starts(self, batch_size: Any) -> list[tf.Tensor]:
        return keras.tree.flatten(super().get_initial_state(batch_size))

    def _start(
        self, index: int, batch_size: Any, training: bool = False, context: Any = None
    ) -> tf.Tensor:
        entry: Any = self.initial_state[index]
        if entry is None:
            return self._cell_starts(batch_size)[index]
        if not entry.takes_context:
            return entry.call(batch_size, training=training)
        if isinstance(context, _AsIs):
            context = context.context
        if context is None:  # As from a wrapper that calls `call()` itself.
            self.check_context(context)
        state = entry.call(batch_size, training=training, context=context)
        return self._with_shape_check(index, state, batch_size, "context")

    def _shown_start(self, index: int, batch_size: int) -> tf.Tensor:
        """What a fresh stream reads as: to look must not draw from a random stream."""
        entry = self.initial_state[index]
        if entry is None:
            return self._start(index, batch_size)
        if entry.takes_context:  # It is not known before there is one.
            return ops.full((batch_size, self.state_units[index]), np.nan)
        if entry.assignable is None:
            return self._start(index, batch_size)
        return initial_states.tile(entry.assignable, batch_size)

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
            ValueError: If `context` is missing, or not used by any state.
        """
        self.check_context(context)
        context = _arrays(context)
        with keras.name_scope(self.name):
            self._build_initial_state(_shapes(context))
        states = [
            ops.cast(
                self._start(index, batch_size, training, context), self.compute_dtype
            )
            for index in range(len(self.state_units))
        ]
        return self._nested(states)

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
        with keras.name_scope(self.name):
            self._build_initial_state()
        assignments = []
        for index, state in enumerate(self._per_state(states, "states")):
            if state is None:
                continue
            entry = self.initial_state[index]
            if entry is not None and entry.takes_context:
                raise ValueError(
                    f"The layer owns no value of {self.state_names[index]} to assign "
                    "to: it is computed from the context. Assign to the weights of "
                    f"`layer.initial_state[{index}].encoder`, or pass None here. "
                    f"Received: states={states}"
                )
            if entry is None or entry.assignable is None:
                raise ValueError(
                    f"The layer owns no value of {self.state_names[index]} to assign "
                    "to. Create it with `initial_state='fixed'` or another kind that "
                    f"has one, or pass None here. Received: states={states}"
                )
            units = self.state_units[index]
            array = self._array(f"states[{index}]", state, (units,), (None, units))
            value = array if array.ndim == 1 else array.mean(axis=0)
            assignments.append((entry.assignable, value))
        for variable, value in assignments:
            variable.assign(value)

    def reset_state(self) -> None:
        """Lets the stream start afresh, from the owned initial state."""
        for state in self._carried:
            state.restart()

    @property
    def _carried(self) -> list[_CarriedState]:
        return keras.tree.flatten(self.states) if self.states else []

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
                "Argument `states` is for a layer with `stateful=True`. "
                f"{self.name} was created with stateful=False. Received: {states}"
            )
        states = self._per_state(states, "states")
        batch_size = self._carried[0].shape[0] if self.states else None
        arrays = []
        for index, state in enumerate(states):
            if state is not None:
                shape = (batch_size, self.state_units[index])
                state = self._array(f"states[{index}]", state, shape)
                batch_size = len(state)
            arrays.append(state)
        if self.states is None and batch_size is not None:
            with keras.name_scope(self.name):
                self._build_initial_state()
                self._create_states(batch_size)
        for state, array in zip(self._carried, arrays, strict=False):
            if array is None:
                state.restart()
            else:
                state.assign(array)

    def get_config(self) -> dict[str, Any]:
        entries = [
            entry and keras.saving.serialize_keras_object(entry)
            for entry in self.initial_state
        ]
        return {
            **super().get_config(),
            **forgotten(self),
            "initial_state": self._nested(entries) if any(entries) else None,
        }

    def _nested(self, states: Sequence[Any]) -> list[Any]:
        """Packs one entry for each state as the cell's `state_size` is nested."""
        remaining = iter(states)
        return keras.tree.map_structure(lambda _: next(remaining), self.state_size)

    def _per_state(
        self, states: Any, argument: str, one_for_all: bool = False
    ) -> list[Any]:
        """Returns one entry for each state, of what is nested as `state_size` is.

        `None` may stand for all the states of a cell, and, with `one_for_all`, so may
        any entry.
        """

        def entries(sizes: Any, given: Any) -> list[Any]:
            if isinstance(sizes, int):
                return [given]
            is_list = isinstance(given, (list, tuple))
            if given is None or (one_for_all and not is_list):
                return [given] * len(keras.tree.flatten(sizes))
            if not is_list or len(given) != len(sizes):
                raise ValueError(
                    f"Argument `{argument}` must be a list with one entry for each of "
                    f"the {len(self.state_units)} states: {self._states_text()}. "
                    f"Received: {argument}={states}"
                )
            return [
                entry
                for size, part in zip(sizes, given, strict=True)
                for entry in entries(size, part)
            ]

        if self.single_state and not isinstance(states, (list, tuple)):
            return [states]
        return entries(self.state_size, states)

    def _states_text(self) -> str:
        texts = [
            f"{name} ({units} units)"
            for name, units in zip(self.state_names, self.state_units, strict=True)
        ]
        nested = self._nested(texts)
        return str(nested)[1:-1].replace("'", "")

    def _array(
        self, argument: str, value: Any, *shapes: tuple[int | None, ...]
    ) -> np.ndarray:
        array = initial_states.finite_array(value, argument, self.variable_dtype)
        if array.size == 0 or not any(fits(array.shape, shape) for shape in shapes):
            raise ValueError(
                f"Argument `{argument}` must be an array of shape "
                f"{' or '.join(map(shape_text, shapes))}. "
                f"Received: an array of shape {array.shape}"
            )
        return array

    def _check_call(self, sequences: Any, states: Any, context: Any) -> None:
        for argument, value in (
            ("sequences", sequences),
            ("initial_state", states),
            ("context", context),
        ):
            if any(map(initial_states.is_legacy, keras.tree.flatten(value))):
                raise ValueError(
                    f"Argument `{argument}` must be a tensor of Keras 3. "
                    f"Received: {value} of the legacy package tf_keras"
                )
        batch_size = (*getattr(sequences, "shape", ()), None)[0]
        owned = []
        given = self._per_state(states, "initial_state")
        for index, (state, entry) in enumerate(
            zip(given, self.initial_state, strict=True)
        ):
            if state is None:
                owned.append(entry)
                continue
            expected = (batch_size, self.state_units[index])
            if not (hasattr(state, "shape") and fits(tuple(state.shape), expected)):
                raise ValueError(
                    f"Argument `initial_state[{index}]` must be a tensor of shape "
                    f"{shape_text(expected)}. Received: {state} (of type "
                    f"{type(state).__name__}, shape {getattr(state, 'shape', None)})"
                )
        self.check_context(context, owned)

    @property
    def takes_context(self) -> bool:
        """Whether an owned initial state is `Conditional`."""
        return any(entry and entry.takes_context for entry in self.initial_state)

    def check_context(self, context: Any, needed: Sequence[Any] | None = None) -> None:
        """Raises a `ValueError` if a context is missing, or superfluous."""
        needed = self.initial_state if needed is None else needed
        if context is None and any(entry and entry.takes_context for entry in needed):
            raise ValueError(
                f"Argument `context` is missing: an initial state of {self.name} is "
                "computed from it. Expected: a tensor of shape (batch, ...), or a "
                "structure of them. Call the layer with `context=...`, in a Functional "
                "model; in place of Bidirectional use InitStateBidirectional. "
                "Received: context=None"
            )
        if context is not None and not self.takes_context:
            raise ValueError(
                f"Argument `context` is for a layer with a `Conditional` initial "
                f"state, and {self.name} has none. Received: context={context}"
            )

    def _check_stream(self, batch_size: int | None) -> None:
        if self.states is None or batch_size in (None, self._carried[0].shape[0]):
            return
        raise ValueError(
            "A stateful layer carries one state for each sequence of a batch. "
            f"Expected a batch size of {self._carried[0].shape[0]}, as in the stream "
            f"so far. Received: sequences with a batch size of {batch_size}"
        )

    # The same two checks for sizes that are known at run time only. `ensure_shape`
    # makes all that follows wait for it, so that a refused call carries nothing over.
    # A control dependency on an assertion does not: TensorFlow's optimizer drops it.

    def _with_stream_check(self, sequences: tf.Tensor) -> tf.Tensor:
        self._check_stream(sequences.shape[0])
        if sequences.shape[0] is not None:
            return sequences
        shape = (self._carried[0].shape[0], *sequences.shape[1:])
        return tf.ensure_shape(sequences, shape, name="batch_size_of_the_stream")

    def _with_shape_check(
        self, index: int, state: tf.Tensor, batch_size: Any, argument: str = ""
    ) -> tf.Tensor:
        shape = (
            batch_size if isinstance(batch_size, int) else None,
            self.state_units[index],
        )
        if tuple(state.shape) != shape:
            name = argument or f"initial_state_{index}"
            state = tf.ensure_shape(state, shape, name=name)
        if shape[0] is None:
            # Without it, a state for one sequence is repeated for the whole batch.
            argument = argument or f"initial_state[{index}]"
            tf.debugging.assert_equal(
                tf.shape(state)[0],
                batch_size,
                f"Argument `{argument}` has another batch size.",
            )
        return state


def _state_names(cell: Any) -> tuple[str, ...]:
    if isinstance(cell, keras.layers.StackedRNNCells):
        return tuple(
            f"cell{index}_{name}"
            for index, inner in enumerate(cell.cells)
            for name in _state_names(inner)
        )
    if isinstance(cell, keras.layers.LSTMCell):
        return ("h0", "c0")
    if len(keras.tree.flatten(cell.state_size)) == 1:
        return ("h0",)
    return tuple(f"state{i}" for i in range(len(keras.tree.flatten(cell.state_size))))


class _AsIs:
    """Hides a context from Keras.

    Keras would cast it to the dtype of the layer, and, for a second tensor in a call,
    would not hand over the mask of the sequences.
    """

    def __init__(self, context: Any) -> None:
        self.context = context

    def __repr__(self) -> str:
        return repr(self.context)


def hide_context(layer: keras.layers.Layer, sequences: Any, context: Any) -> Any:
    """Builds a layer for a context, and returns it as it is to be passed to Keras."""
    if any(isinstance(x, keras.KerasTensor) for x in keras.tree.flatten(context)):
        return context
    context = _arrays(context)
    _build(layer, sequences, context)
    return _AsIs(context)


def _build(layer: keras.layers.Layer, sequences: Any, context: Any) -> None:
    rank = len(getattr(sequences, "shape", ()))
    if rank < 3 or rank != getattr(layer.input_spec, "ndim", rank):
        return  # Keras refuses it, and must find the layer as it was.
    if not layer.built:
        layer.build(tuple(sequences.shape), context_shape=_shapes(context))


def _arrays(context: Any) -> Any:
    """A list of numbers is one array, and no structure of tensors without shape."""
    if isinstance(context, (list, tuple)) and not any(
        hasattr(leaf, "shape") for leaf in keras.tree.flatten(context)
    ):
        return np.asarray(context)
    return context


def _shapes(context: Any) -> Any:
    if context is None:
        return None
    return keras.tree.map_structure(lambda x: tuple(np.shape(x)), context)
