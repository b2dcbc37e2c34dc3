"""The initial states of one layer, and their values for a batch."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras import ops

from keras_init_lstm._checks import (
    array_of_shape,
    check_shape,
    described,
    finite_array,
    shape_of,
    shape_text,
    with_shape,
)
from keras_init_lstm._copies import build_inside
from keras_init_lstm.initial_states.base import InitialState
from keras_init_lstm.initial_states.fixed import Fixed
from keras_init_lstm.initial_states.layout import State, StateLayout
from keras_init_lstm.initial_states.sampled import Sampled
from keras_init_lstm.initial_states.trainable import Trainable

_NAMES = {"fixed": Fixed, "sampled": Sampled, "trainable": Trainable}


def kind_of(entry: Any) -> InitialState | None:
    """Converts an entry of the argument `initial_state` to an `InitialState`.

    Args:
        entry: `None` or `"zeros"`, a number, an array of shape `(units,)`, one of
            `"fixed"`, `"sampled"` and `"trainable"`, an `InitialState`, or the
            serialized form of one.

    Returns:
        An `InitialState`, or `None` for the initial state of the cell.

    Raises:
        ValueError: If `entry` is none of these.
    """
    if isinstance(entry, dict) and "class_name" in entry:
        entry = keras.saving.deserialize_keras_object(entry)
    if isinstance(entry, str) and entry in _NAMES:
        return _NAMES[entry]()
    if entry is None or isinstance(entry, InitialState):
        return entry
    if isinstance(entry, str) and entry == "zeros":
        return None
    hint = ""
    if isinstance(entry, (str, keras.initializers.Initializer)):
        hint = (
            " For a Keras initializer, pass `Trainable(initializer)`, which is "
            "learned, or `Fixed(initializer)`, which is not."
        )
    try:
        return Fixed(finite_array(entry, "initial_state"))
    except ValueError as error:
        raise ValueError(
            "An entry of `initial_state` must be None, 'zeros', a finite number, a "
            f"finite array of shape `(units,)`, one of {sorted(_NAMES)}, or an object "
            "such as `Fixed(value)`, `Sampled(mean, stddev)` or "
            f"`Trainable(initializer)`.{hint} Received: {described(entry)}"
        ) from error


def refuse_initial_state(value: Any, argument: str) -> None:
    """Raises a `ValueError` if an initial state was passed as another argument.

    Keras would take an `InitialState`, which is callable, for an activation.
    """
    if isinstance(value, InitialState) or (isinstance(value, str) and value in _NAMES):
        raise ValueError(
            f"Argument `{argument}` can't be an initial state, which is passed by "
            f"name: `initial_state={value!r}`. Received: {argument}={described(value)}"
        )


def kinds_of(
    layout: StateLayout, initial_state: Any, dtype: Any, trainable: bool
) -> list[InitialState | None]:
    """Converts the argument `initial_state` of a layer to one object for each state.

    Args:
        layout: The states of the layer's cell.
        initial_state: One entry for all states, or a list nested as they are.
        dtype: The dtype policy of the layer.
        trainable: Whether the layer is trainable.

    Returns:
        For each state a copy of its entry, or `None` for the initial state of the cell.

    Raises:
        ValueError: If an entry is invalid, or does not fit the units of its state.
    """
    kinds: list[InitialState | None] = []
    for entry, states in layout.shared_entries(initial_state, "initial_state"):
        try:
            kind = kind_of(entry)
        except (TypeError, ValueError) as error:
            raise _for_states(states, error) from error
        if kind is not None and kind.all_states:
            kinds += [_copy_for(states, kind, dtype, trainable)] * len(states)
        else:
            kinds += [_copy_for([s], kind, dtype, trainable) for s in states]
    return kinds


def _copy_for(
    states: Sequence[State], kind: InitialState | None, dtype: Any, trainable: bool
) -> InitialState | None:
    """Returns a copy of `kind` that computes the given states of a layer."""
    if kind is None:
        return None
    name = "_".join(state.name for state in states)
    try:
        # The copy of a built encoder has variables, and their paths must differ
        # between the states.
        with keras.name_scope(name):
            kind = kind.copy(name=name, dtype=dtype)
        kind.units_axis = states[0].units_axis
        for state in states:
            kind.check(state.shape)
    except (TypeError, ValueError) as error:
        raise _for_states(states, error) from error
    if not trainable:
        kind.trainable = False
    return kind


def _for_states(states: Sequence[State], error: Exception) -> ValueError:
    names = " and ".join(state.name for state in states)
    return ValueError(f"Argument `initial_state`, for {names}: {error}")


def as_argument(layout: StateLayout, kinds: Sequence[Any]) -> list[Any] | InitialState:
    """Nests one entry for each state as the argument `initial_state` of a layer.

    A kind that computes all states of a cell stands once, in the place of their list.
    """

    def once(nested: Any) -> Any:
        if not isinstance(nested, list):
            return nested
        first, *others = keras.tree.flatten(nested)
        if getattr(first, "all_states", False) and all(x is first for x in others):
            return first
        return [once(entry) for entry in nested]

    nested: list[Any] | InitialState = once(layout.pack(kinds))
    return nested


def _without_time_axis(context: Any) -> Any:
    return keras.tree.map_structure(
        lambda spec: keras.KerasTensor((*spec.shape[:1], *spec.shape[2:]), spec.dtype),
        context,
    )


def _build_inside(kind: InitialState, context: Any, at_once: bool) -> None:
    """Builds the layers inside a kind that are built by its `call()`."""

    def call(context: Any) -> Any:
        with keras.name_scope(kind.name):
            if not kind.takes_context:
                return kind.call(1)
            kwargs = {"context": context}
            return kind.call(ops.shape(keras.tree.flatten(context)[0])[0], **kwargs)

    build_inside(kind, call, context, at_once)


@dataclasses.dataclass
class OwnedStates:
    """The initial states of one layer.

    Args:
        layout: The states of the layer's cell. When a ConvLSTM is built, it is replaced
            by the layout that knows the spatial dimensions.
        kinds: For each state an `InitialState`, or `None` for the initial state of the
            cell: zeros, unless the cell has a custom `get_initial_state()`. A kind with
            `all_states` stands in the place of each of its states.
        states_of_cell: Function that takes a batch size and returns the initial states
            of the cell, one for each state.
    """

    layout: StateLayout
    kinds: Sequence[InitialState | None]
    states_of_cell: Callable[[Any], Sequence[Any]]

    @functools.cached_property
    def groups(self) -> list[tuple[InitialState | None, list[int]]]:
        """Each kind once, with the indices of its states."""
        indices: dict[int, list[int]] = {}
        for index, kind in enumerate(self.kinds):
            indices.setdefault(id(kind), []).append(index)
        return [(self.kinds[group[0]], group) for group in indices.values()]

    @property
    def takes_context(self) -> bool:
        """Whether an initial state is computed from a context."""
        return any(kind is not None and kind.takes_context for kind in self.kinds)

    def check_context(
        self,
        context: Any,
        batch_size: Any,
        timesteps: Any,
        explicit: Sequence[Any] | None,
        name: str,
    ) -> None:
        """Raises a `ValueError` if a context is missing, not used, or does not fit.

        Args:
            context: A tensor `(batch, ...)`, a structure of tensors, or `None`.
            batch_size: The batch size of the sequences: an integer, or anything else
                if it is not known.
            timesteps: The number of timesteps: an integer, or anything else if it is
                not known.
            explicit: For each state the tensor that replaces the owned state, or
                `None`. Or `None` if no state is replaced.
            name: The name of the layer, for errors.
        """
        if context is not None and not self.takes_context:
            raise ValueError(
                "Argument `context` is for a layer with a `Conditional` initial state, "
                f"and {name} has none. Received: context={described(context)}"
            )
        pairs = zip(self.kinds, explicit or [None] * len(self.kinds), strict=True)
        if context is None and any(
            kind is not None and kind.takes_context and tensor is None
            for kind, tensor in pairs
        ):
            raise ValueError(
                f"Argument `context` is missing: an initial state of {name} is "
                "computed from it. Expected: a tensor of shape (batch, ...), or a "
                "structure of them. Call the layer with `context=...`, in a Functional "
                "model. The wrappers of Keras don't pass it on: in place of "
                "Bidirectional use InitStateBidirectional, in place of TimeDistributed "
                "fold the timesteps into the batch. Received: context=None"
            )
        if context is None:
            return  # Explicit states replace all states that need a context.
        if not (keras.tree.is_nested(context) or hasattr(context, "shape")):
            raise ValueError(
                "Argument `context` must be a tensor of shape (batch, ...), or a "
                f"structure of them. Received: context={described(context)}"
            )
        expectation = (
            "Argument `context` must have one row for each sequence of the "
            f"batch: shape {shape_text((batch_size,))[:-1]} ...)."
        )
        axes: tuple[Any, ...] = (batch_size,)
        if any(kind is not None and kind.over_time for kind in self.kinds):
            axes = (batch_size, timesteps)
            expectation = (
                "Argument `context` must have a time axis, because an initial state "
                f"has `over_time=True`: shape {shape_text(axes)[:-1]}, ...)."
            )
        for leaf in keras.tree.flatten(context):
            shape = shape_of(leaf)
            if shape or len(axes) > 1:
                shape = shape or ()
                check_shape(
                    leaf, (*axes, *[None] * (len(shape) - len(axes))), expectation
                )

    def build(self, context: Any = None, at_once: bool = False) -> None:
        """Builds the kinds that are not built.

        The kinds that need a context, or the size of a ConvLSTM's space, wait for it.

        Args:
            context: `KerasTensor`s in the structure of the context, or `None`.
            at_once: Whether the layers inside a kind must be built now. If not, layers
                that can only be built by an eager call are left to the next call.
                Defaults to `False`.
        """
        for state, kind in zip(self.layout.states, self.kinds, strict=True):
            if kind is not None and not kind.built:
                try:
                    kind.check(state.shape)
                except ValueError as error:
                    raise _for_states([state], error) from error
        for kind, indices in self.groups:
            if kind is None or (kind.takes_context and context is None):
                continue
            shapes = [self.layout.states[index].shape_for(kind) for index in indices]
            if any(None in shape for shape in shapes):
                continue
            specs = _without_time_axis(context) if kind.over_time else context
            if kind.built and not at_once:
                continue
            if not kind.built:
                of_context = []
                if kind.takes_context:
                    of_context = [
                        keras.tree.map_structure(lambda spec: spec.shape, specs)
                    ]
                kind.build(shapes if kind.all_states else shapes[0], *of_context)
            _build_inside(kind, specs, at_once)

    def for_batch(
        self,
        batch_size: Any,
        training: bool = False,
        context: Any = None,
        explicit: Sequence[Any] | None = None,
        first_timestep: int = 0,
    ) -> list[Any]:
        """Returns the initial states of a batch.

        Args:
            batch_size: Integer, or scalar integer tensor.
            training: Python boolean, whether the layer is called in training mode.
                Defaults to `False`.
            context: The context of the layer's call. Defaults to `None`.
            explicit: For each state the tensor that replaces the owned state, or
                `None`. Defaults to `None`.
            first_timestep: The index of the timestep that is read first, 0 or -1.
                Defaults to 0.

        Returns:
            A tensor `(batch_size, *shape)` for each state.
        """
        states = list(explicit or [None] * len(self.kinds))
        # Call the encoders first: they may raise an error for the context, and nothing
        # must be drawn before that.
        for kind, indices in sorted(self.groups, key=_may_draw):
            if all(states[index] is not None for index in indices):
                continue
            if kind is None:
                # One call of the cell returns all of its states.
                of_cell = self.states_of_cell(batch_size)
                computed = [of_cell[index] for index in indices]
            else:
                first_context = context
                if kind.over_time:
                    first_context = keras.tree.map_structure(
                        lambda leaf: ops.convert_to_tensor(leaf)[:, first_timestep],
                        context,
                    )
                computed = self._call_kind(
                    kind, indices, batch_size, training, first_context
                )
            for index, state in zip(indices, computed, strict=True):
                states[index] = state if states[index] is None else states[index]
        return states

    def for_resets(
        self,
        states: Sequence[Any],
        batch_size: Any,
        timesteps: Any,
        training: bool = False,
        context: Any = None,
    ) -> list[Any]:
        """Returns the states to which a reset within a batch sets its row.

        Args:
            states: The states that `for_batch()` returned.
            batch_size: As in `for_batch()`.
            timesteps: Integer, or scalar integer tensor.
            training: As in `for_batch()`.
            context: As in `for_batch()`.

        Returns:
            For each state a tensor `(batch_size, *shape)`, or `(batch_size, timesteps,
            *shape)` if the state differs between timesteps.
        """
        states = list(states)
        for kind, indices in self.groups:
            if kind is not None:
                kwargs = {"context": context} if kind.takes_context else {}
                by_timestep: Any = kind.by_timestep(
                    batch_size, timesteps, training=training, **kwargs
                )
                if by_timestep is not None:
                    computed = by_timestep if kind.all_states else [by_timestep]
                    for index, tensor in zip(indices, computed, strict=True):
                        state = self.layout.states[index]
                        states[index] = state.over_space(tensor, axes=2)
        return states

    def _call_kind(
        self,
        kind: Any,
        indices: Sequence[int],
        batch_size: Any,
        training: bool,
        context: Any,
    ) -> list[Any]:
        kwargs = {"context": context} if kind.takes_context else {}
        computed = kind.call(batch_size, training=training, **kwargs)
        tensors = list(computed) if kind.all_states else [computed]
        states = [self.layout.states[index] for index in indices]
        for position, state in enumerate(states):
            tensor = tensors[position]
            if kind.takes_context:
                shape = state.shape if len(tensor.shape) > 2 else (state.units,)
                tensor = with_shape(
                    tensor,
                    (batch_size, *shape),
                    "Argument `context` must have one row for each sequence of the "
                    f"batch, so that {state.name} is {shape_text((None, *shape))}.",
                )
            tensors[position] = state.over_space(tensor)
        return tensors

    def preview(self, index: int, batch_size: int) -> Any:
        """Returns the initial state that state `index` of a stream shows when fresh."""
        kind = self.kinds[index]
        if kind is None:
            return self.states_of_cell(batch_size)[index]
        preview = kind.preview(batch_size)
        if kind.all_states:
            preview = preview[index - self.kinds.index(kind)]
        return self.layout.states[index].over_space(preview)

    def assign(
        self, states: Sequence[Any], dtype: str, reduction: str | None = None
    ) -> None:
        """Overwrites the owned values.

        Args:
            states: For each state an array of the shape of its owned value, with a
                `reduction` also with a batch before this shape, or `None`.
            dtype: The dtype in which the arrays must be finite.
            reduction: `"mean"`, to assign the mean over a batch; or `None`.

        Raises:
            ValueError: If an array has another shape or is not finite, or if there is
                no value to overwrite. No value is then changed.
        """
        assignments = []
        pairs = zip(self.layout.states, self.kinds, strict=True)
        for index, (state, kind) in enumerate(pairs):
            if states[index] is None:
                continue
            variable = getattr(kind, "value", None)
            if variable is None:
                reason = f" {kind._missing('value')}." if kind else ""
                raise ValueError(
                    f"Argument `states[{index}]` must be None, since the layer owns no "
                    f"value of {state.name} to assign to.{reason} "
                    "`initial_state='fixed'` and other kinds own one. "
                    f"Received: {described(states[index])}"
                )
            array = array_of_shape(
                states[index],
                f"states[{index}]",
                dtype,
                variable.shape,
                (None, *variable.shape),
            )
            if array.ndim > len(variable.shape):
                if reduction is None:
                    raise ValueError(
                        f"Argument `states[{index}]` must be an array of shape "
                        f"{shape_text(variable.shape)}. For the mean over a batch, "
                        "pass `reduction='mean'`. Received: an array of shape "
                        f"{array.shape}"
                    )
                array = array.mean(axis=0)
            assignments.append((variable, array))
        for variable, value in assignments:
            variable.assign(value)


def _may_draw(group: tuple[InitialState | None, list[int]]) -> bool:
    kind, _ = group
    return kind is not None and not kind.takes_context
