"""Where a state starts, and how it is carried: the recurrent layers."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import ops

from keras_init_lstm import fused, initial_states

# With fewer, the loop is too small a part of a step for its compilation to pay.
_FEWEST_TIMESTEPS = 8
# Each is compiled anew, in some tenths of a second.
_MOST_SHAPES = 8


class _CarriedState(keras.Variable):
    """One state of a stream: what the next call of a stateful layer starts from.

    Until something is assigned to it, it is fresh, and reads as the initial state
    that the layer owns.
    """

    def __init__(self, layer: "InitStateLSTM", index: int, batch_size: int) -> None:
        self._layer = layer
        self._index = index
        self._fresh = keras.Variable(
            "ones", shape=(), dtype="bool", trainable=False, name="fresh"
        )
        super().__init__(
            "zeros",
            shape=(batch_size, layer.state_size[index]),
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

    def __repr__(self) -> str:
        return f"<Variable path={self.path}, dtype={self.dtype}, value={self.value}>"


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class InitStateLSTM(keras.layers.LSTM):
    """Long short-term memory layer that owns its initial state.

    It is `keras.layers.LSTM` but for what a sequence starts from: a hidden state h
    and a cell state c that the layer owns and repeats for each row of the batch,

        InitStateLSTM(...)(x) == LSTM(...)(x, initial_state=[h0, c0])

    with h0 and c0 the owned states tiled to `(batch, units)`. Without
    `initial_state` it has the weights, the outputs and the summary of an `LSTM`.

    Args:
        units: Positive integer, dimensionality of the output space.
        *args: The other arguments of `keras.layers.LSTM`, in its order.
        initial_state: What each sequence starts from. One entry, used for both
            states (each then owns its own variables), or a list of two, for h and
            c. An entry is one of:

            - `None` or `"zeros"`: zeros, as in `LSTM`.
            - A number or an array of shape `(units,)`: `Fixed` at that value.
            - `"fixed"`, `"sampled"` or `"trainable"`: the object with its defaults.
            - A `Fixed`, `Sampled` or `Trainable` object, which is copied; the
              layer's own are in `layer.initial_state`.

            Defaults to `None`.
        use_fused: Whether to run the fused loop of `keras_init_lstm.fused`, which
            gives the same results and gradients, on the CPU, faster. `"auto"` takes
            it where it can and is known to win; `False` never; `True` always, with
            an error where it cannot. See "Fused loop" below. Defaults to `"auto"`.
        **kwargs: The keyword arguments of `keras.layers.LSTM`.

    Call arguments:
        sequences: A tensor `(batch, timesteps, features)`.
        initial_state: List of two tensors `(batch, units)` that are used instead of
            the owned states, for this call; `None`, or `None` as an entry, keeps
            the owned. As with `LSTM`, pass `mask` too if there is one: Keras hands
            an implicit mask only to a layer called with a single tensor.
        mask: Boolean tensor `(batch, timesteps)`, `False` where a timestep is to be
            skipped. Defaults to `None`.
        training: Python boolean, whether the layer behaves in training mode. This
            matters to dropout and to `Sampled`. Defaults to `False`.

    Input shape:
        `(batch, timesteps, features)`. Batch and timesteps may be unknown until the
        call; a stateful layer needs to know its batch size.

    Output shape:
        `(batch, timesteps, units)` with `return_sequences=True`, else
        `(batch, units)`; with `return_state=True` followed by the last h and c,
        each `(batch, units)`. The dtype is the layer's `compute_dtype`.

    Raises:
        ValueError: If `initial_state` is not as above, does not fit `units`, or is
            not finite; if a state given at a call is not `(batch, units)`; if a
            batch does not have the size of the stream that the layer carries.

    Stateful streams:
        With `stateful=True` the states are carried from call to call. After
        construction and after a reset, every row starts from the owned initial
        state, which gets its gradient from that call (`LSTM` in Keras 3 only ever
        returns to zeros). `reset_states(states=[h, c])` starts from given states,
        as it did in Keras 2. A state given at a call replaces the carried one, and
        the stream goes on from the result. The carried states are not saved with
        the model.

    Fused loop:
        It is for tanh and sigmoid as activations, without `unroll`, and in training
        without `recurrent_dropout` (nor `dropout` with `implementation=1`), on the
        CPU. Otherwise, and where a GPU is present, Keras's own loop runs. `"auto"`
        also leaves to Keras: 16-bit floating point; fewer than 8 timesteps; a number
        of timesteps that is unknown in a graph; what comes after the first eight
        different numbers of timesteps, or shapes of eager batches, since each is
        compiled anew (batch sizes are rounded up to few);
        and inference in a `tf.function` of one's own, which may be an export. So
        `fit`, `evaluate`, `predict` and eager calls take the fused loop, while a
        SavedModel, TFLite or ONNX file holds a plain LSTM.

    References:
        [Hochreiter and Schmidhuber, 1997](https://doi.org/10.1162/neco.1997.9.8.1735)
        for the LSTM.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> layer(np.zeros((32, 10, 8))).shape
    TensorShape([32, 4])
    >>> [v.path.split("/", 1)[1] for v in layer.trainable_variables[-2:]]
    ['h0/value', 'c0/value']
    """

    state_names = ("h0", "c0")

    def __init__(
        self,
        units: int,
        *args: Any,
        initial_state: Any = None,
        use_fused: bool | str = "auto",
        **kwargs: Any,
    ) -> None:
        super().__init__(units, *args, **kwargs)
        if not (use_fused == "auto" or isinstance(use_fused, bool)):
            raise ValueError(
                "Argument `use_fused` must be 'auto', True or False. "
                f"Received: use_fused={use_fused}"
            )
        self.use_fused = use_fused
        self._fused_shapes: set[tuple[int | None, int]] = set()
        if not isinstance(initial_state, (list, tuple)):
            initial_state = [initial_state] * len(self.state_size)
        entries = self._per_state(initial_state, "initial_state")
        # As attributes, since both Keras and TensorFlow find the entries of their
        # files by the names of attributes; in a list they would have none.
        for name, units, entry in zip(
            self.state_names, self.state_size, entries, strict=True
        ):
            setattr(self, name, self._own(name, units, entry))

    @property
    def initial_state(self) -> list[initial_states.InitialState | None]:
        """The objects that own the initial states of h and c; `None` for zeros."""
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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Checked here, before anything is built, traced or carried.
        sequences: Any = args[0] if args else kwargs.get("sequences")
        given = args[1] if len(args) > 1 else kwargs.get("initial_state")
        self._check_call(sequences, given)
        if given is not None and not self.built and _rank(sequences) == 3:
            # Keras 3.12 and before build no layer that is given None among tensors.
            self.build(tuple(sequences.shape))
        return super().__call__(*args, **kwargs)

    def compute_output_spec(self, sequences: Any, *args: Any, **kwargs: Any) -> Any:
        # Nor does it take their shapes, on which the outputs do not depend.
        return super().compute_output_spec(sequences)

    def build(
        self,
        sequences_shape: tuple[int | None, ...],
        initial_state_shape: Any = None,
    ) -> None:
        batch_size = sequences_shape[0]
        self._check_stream(batch_size)
        if self.stateful:
            if batch_size is None:
                raise ValueError(
                    "With `stateful=True` the batch size must be known when the layer "
                    "is built: pass `batch_size` to `Input`. "
                    f"Received: sequences of shape {tuple(sequences_shape)}"
                )
            if self.states is None:
                self._create_states(batch_size)
        if not self.cell.built:
            self.cell.build((batch_size, *sequences_shape[2:]))
        self._build_initial_state()

    def _build_initial_state(self) -> None:
        for entry, units in zip(self.initial_state, self.state_size, strict=True):
            if entry is not None and not entry.built:
                entry.build((units,))

    def _create_states(self, batch_size: int) -> None:
        # Past `__setattr__`, which would make weights of them: as in Keras, the
        # states of a stream are neither counted nor saved with the model.
        self.__dict__["states"] = [
            _CarriedState(self, index, batch_size)
            for index in range(len(self.state_size))
        ]
        # For what TensorFlow saves, `tf.train.Checkpoint` and SavedModel, which must
        # know of every variable: Keras does not look into a module.
        self._stream = tf.Module()
        for state, name in zip(self.states, self.state_names, strict=True):
            setattr(self._stream, name, state.tf_variables())

    def call(
        self,
        sequences: tf.Tensor,
        initial_state: Any = None,
        mask: tf.Tensor | None = None,
        training: bool = False,
    ) -> Any:
        if self.stateful:
            sequences = self._with_stream_check(sequences)
        batch_size = ops.shape(sequences)[0]
        if initial_state is None:
            initial_state = [None] * len(self.state_size)
        states = []
        for index, state in enumerate(initial_state):
            if state is not None:
                state = self._with_shape_check(index, state, batch_size)
            else:
                state = self._start(index, batch_size, training)
                if self.stateful:
                    state = self.states[index].or_start(state)
            states.append(state)
        return super().call(
            sequences, initial_state=states, mask=mask, training=training
        )

    def inner_loop(
        self,
        sequences: tf.Tensor,
        initial_state: Any,
        mask: Any,
        training: bool = False,
    ) -> Any:
        if not self._takes_fused(sequences, training):
            return super().inner_loop(sequences, initial_state, mask, training=training)
        if training and self.dropout:
            sequences *= self.cell.get_dropout_mask(sequences[:, 0])[:, None]
        if mask is not None:
            mask = tf.cast(keras.tree.flatten(mask)[0], "bool")
        if self.go_backwards:
            sequences = tf.reverse(sequences, [1])
            mask = None if mask is None else tf.reverse(mask, [1])
        outputs, h, c = fused.lstm(
            sequences,
            mask,
            initial_state[0],
            initial_state[1],
            tf.convert_to_tensor(self.cell.kernel),
            tf.convert_to_tensor(self.cell.recurrent_kernel),
            tf.convert_to_tensor(self.cell.bias) if self.use_bias else None,
            training=bool(training),
        )
        if not self.return_sequences:
            # Not the end of `outputs`, which need then not be put together.
            outputs = h[:, None]
        if mask is not None:
            # What Keras puts out where nothing was read: the output before, if any.
            read = mask
            if not self.zero_output_for_mask:
                read = tf.cumsum(tf.cast(mask, "int32"), axis=1) > 0
            if not self.return_sequences:
                read = read[:, -1:]
            outputs = tf.where(read[:, :, None], outputs, tf.zeros_like(outputs))
        return outputs[:, -1], outputs, [h, c]

    def _takes_fused(self, sequences: tf.Tensor, training: bool) -> bool:
        if self.use_fused is False:
            return False
        refusals = {
            "a GPU, or a TensorFlow without XLA": not fused.available(),
            "activations other than tanh and sigmoid": (
                self.activation is not keras.activations.tanh
                or self.recurrent_activation is not keras.activations.sigmoid
            ),
            "unroll=True": self.unroll,
            "recurrent_dropout": training and self.recurrent_dropout,
            "dropout with implementation=1": (
                training and self.dropout and self.cell.implementation == 1
            ),
            f"inputs of dtype {sequences.dtype.name}": (
                sequences.dtype != self.compute_dtype
            ),
        }
        refused = [reason for reason, applies in refusals.items() if applies]
        if self.use_fused is True and refused:
            raise ValueError(
                f"The fused loop does not support {refused[0]}. Pass "
                "`use_fused='auto'` to run Keras's own loop. Received: use_fused=True"
            )
        if self.use_fused is True or refused:
            return not refused
        timesteps = sequences.shape[1]
        if (timesteps or 0) < _FEWEST_TIMESTEPS or self.compute_dtype not in (
            "float32",
            "float64",
        ):
            return False
        # An exporter traces like the user of a `tf.function`, and finds no LSTM in a
        # compiled loop. Keras's `evaluate` and `predict` trace within a replica, whose
        # context outside of one is of a subclass.
        context = tf.distribute.get_replica_context()
        in_keras = type(context) is tf.distribute.ReplicaContext
        if tf.inside_function() and not (training or in_keras):
            return False
        compiled = (fused.rounded_up(sequences.shape[0]), timesteps)
        if len(self._fused_shapes) < _MOST_SHAPES:
            self._fused_shapes.add(compiled)
        return compiled in self._fused_shapes

    def _start(self, index: int, batch_size: Any, training: bool = False) -> tf.Tensor:
        entry = self.initial_state[index]
        if entry is None:
            return ops.zeros((batch_size, self.state_size[index]), self.compute_dtype)
        return entry.call(batch_size, training=training)

    def _shown_start(self, index: int, batch_size: int) -> tf.Tensor:
        """What a fresh stream reads as: to look must not draw from a random stream."""
        entry = self.initial_state[index]
        if entry is None or entry.assignable is None:
            return self._start(index, batch_size)
        return initial_states.tile(entry.assignable, batch_size)

    def get_initial_state(
        self, batch_size: Any, training: bool = False
    ) -> list[tf.Tensor]:
        """Returns the owned initial states of a batch.

        Args:
            batch_size: Integer, or scalar integer tensor.
            training: Python boolean, whether as in training (a `Sampled` state is
                then drawn) or as at inference. Defaults to `False`.

        Returns:
            List of two tensors `(batch_size, units)` of dtype `compute_dtype`.
        """
        with keras.name_scope(self.name):
            self._build_initial_state()
        return [
            ops.cast(self._start(index, batch_size, training), self.compute_dtype)
            for index in range(len(self.state_size))
        ]

    def assign_initial_state(self, states: Sequence[Any]) -> None:
        """Overwrites the owned initial states.

        Args:
            states: List of two arrays, for h and c, each of shape `(units,)`, or
                `(batch, units)`, of which the mean over the batch is taken: the
                final states of one layer can start another. `None` as an entry
                leaves that state. Of a `Sampled` state, the mean is overwritten.

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
            if entry is None or entry.assignable is None:
                raise ValueError(
                    f"The layer owns no value of {self.state_names[index]} to assign "
                    "to. Create it with `initial_state='fixed'` or another kind that "
                    f"has one, or pass None here. Received: states={states}"
                )
            units = self.state_size[index]
            array = self._array(f"states[{index}]", state, (units,), (None, units))
            value = array if array.ndim == 1 else array.mean(axis=0)
            assignments.append((entry.assignable, value))
        for variable, value in assignments:
            variable.assign(value)

    def reset_state(self) -> None:
        """Lets the stream start afresh, from the owned initial state."""
        for state in self.states or ():
            state.restart()

    def reset_states(self, states: Sequence[Any] | None = None) -> None:
        """Lets the stream start afresh, from the owned or from the given states.

        Args:
            states: List of two arrays `(batch, units)`, for h and c, that the next
                call starts from, also if it is the first. `None` as an entry, or
                for all, means the owned initial state. Defaults to `None`.

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
        batch_size = self.states[0].shape[0] if self.states else None
        arrays = []
        for index, state in enumerate(states):
            if state is not None:
                shape = (batch_size, self.state_size[index])
                state = self._array(f"states[{index}]", state, shape)
                batch_size = len(state)
            arrays.append(state)
        if self.states is None and batch_size is not None:
            with keras.name_scope(self.name):
                self._build_initial_state()
                self._create_states(batch_size)
        for state, array in zip(self.states or (), arrays, strict=False):
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
            "implementation": self.cell.implementation,
            "use_cudnn": self.use_cudnn,
            "use_fused": self.use_fused,
            "initial_state": entries if any(entries) else None,
        }

    def _per_state(self, states: Any, argument: str) -> Sequence[Any]:
        if isinstance(states, (list, tuple)) and len(states) == len(self.state_size):
            return states
        expected = ", ".join(
            f"{name} ({units} units)"
            for name, units in zip(self.state_names, self.state_size, strict=True)
        )
        raise ValueError(
            f"Argument `{argument}` must be a list with one entry for each of the "
            f"{len(self.state_size)} states: {expected}. "
            f"Received: {argument}={states}"
        )

    def _array(
        self, argument: str, value: Any, *shapes: tuple[int | None, ...]
    ) -> np.ndarray:
        array = initial_states.finite_array(value, argument, self.variable_dtype)
        if array.size == 0 or not any(_fits(array.shape, shape) for shape in shapes):
            raise ValueError(
                f"Argument `{argument}` must be an array of shape "
                f"{' or '.join(map(_shape_text, shapes))}. "
                f"Received: an array of shape {array.shape}"
            )
        return array

    def _check_call(self, sequences: Any, states: Any) -> None:
        for argument, value in (("sequences", sequences), ("initial_state", states)):
            if any(map(initial_states.is_legacy, keras.tree.flatten(value))):
                raise ValueError(
                    f"Argument `{argument}` must be a tensor of Keras 3. "
                    f"Received: {value} of the legacy package tf_keras"
                )
        if states is None:
            return
        batch_size = (*getattr(sequences, "shape", ()), None)[0]
        for index, state in enumerate(self._per_state(states, "initial_state")):
            if state is None:
                continue
            expected = (batch_size, self.state_size[index])
            if not (hasattr(state, "shape") and _fits(tuple(state.shape), expected)):
                raise ValueError(
                    f"Argument `initial_state[{index}]` must be a tensor of shape "
                    f"{_shape_text(expected)}. Received: {state} (of type "
                    f"{type(state).__name__}, shape {getattr(state, 'shape', None)})"
                )

    def _check_stream(self, batch_size: int | None) -> None:
        if self.states is None or batch_size in (None, self.states[0].shape[0]):
            return
        raise ValueError(
            "A stateful layer carries one state for each sequence of a batch. "
            f"Expected a batch size of {self.states[0].shape[0]}, as in the stream so "
            f"far. Received: sequences with a batch size of {batch_size}"
        )

    # The same two checks for sizes that are known at run time only. `ensure_shape`
    # makes all that follows wait for it, so that a refused call carries nothing over.
    # A control dependency on an assertion does not: TensorFlow's optimizer drops it.

    def _with_stream_check(self, sequences: tf.Tensor) -> tf.Tensor:
        self._check_stream(sequences.shape[0])
        if sequences.shape[0] is not None:
            return sequences
        shape = (self.states[0].shape[0], *sequences.shape[1:])
        return tf.ensure_shape(sequences, shape, name="batch_size_of_the_stream")

    def _with_shape_check(
        self, index: int, state: tf.Tensor, batch_size: Any
    ) -> tf.Tensor:
        shape = (
            batch_size if isinstance(batch_size, int) else None,
            self.state_size[index],
        )
        if tuple(state.shape) != shape:
            state = tf.ensure_shape(state, shape, name=f"initial_state_{index}")
        if shape[0] is None:
            # Without it, a state for one sequence is repeated for the whole batch.
            tf.debugging.assert_equal(
                tf.shape(state)[0],
                batch_size,
                f"Argument `initial_state[{index}]` has another batch size.",
            )
        return state


def _rank(tensor: Any) -> int:
    return len(getattr(tensor, "shape", ()))


def _fits(shape: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether two shapes, `None` for what is unknown, can be the same."""
    return len(shape) == len(expected) and all(
        a == b or None in (a, b) for a, b in zip(shape, expected, strict=True)
    )


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return str(tuple("batch" if size is None else size for size in shape)).replace(
        "'batch'", "batch"
    )
