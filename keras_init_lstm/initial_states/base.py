"""The base class of the kinds of initial state. Each kind is a small Keras layer.

A kind owns variables of shape `(units,)`, or of the whole shape of a ConvLSTM's state,
and computes one row for each sequence of a batch. To add a kind, write a subclass of
`InitialState` in a new file: the rest of the package uses only the interface of
`InitialState`.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import described, finite_array, fits, is_legacy, one_of
from keras_init_lstm._keras import named_arguments
from keras_init_lstm._types import Shape

if TYPE_CHECKING:
    from typing_extensions import Self

# The arguments that every Keras layer takes.
_BASE_ARGUMENTS = ("name", "dtype", "trainable", "autocast", "activity_regularizer")


class InitialState(keras.layers.Layer):
    """Base class of the kinds of initial state. Subclass it for custom kinds.

    A recurrent layer makes a copy of the object for each of its states, names the copy
    (`h0`, `c0`), gives it the dtype policy of the layer and builds it.

    A subclass implements `call()`. It also implements `build()` if it has variables,
    `get_config()` if its constructor takes arguments, and `check()` if these may not
    fit the shape of the state. With `takes_context = True`, its `build()` and `call()`
    get the context of the layer's call.

    Args:
        **kwargs: Base layer arguments: `name`, `dtype` and `trainable`.

    Attributes:
        units: The number of units, or of filters. `build()` sets it.
        state_shape: The shape of the state without the batch, `(units,)`. `build()`
            sets it.
        per_position: Whether `state_shape` is the whole shape of a ConvLSTM's state,
            `(*space, filters)`, or with `data_format="channels_first"`
            `(filters, *space)`. If not, it is `(filters,)`, and the layer broadcasts
            the states that `call()` returns over all positions.
        units_axis: The axis of the whole shape that has the units or filters. The layer
            sets it.
        value: The variable `(units,)` with the initial state at inference, if the kind
            owns one. `assign_initial_state()` overwrites it, and `plot_initial_state()`
            draws it. `build()` sets it.
        stddev: The variable `(units,)` with the standard deviation of the rows in
            training, if the kind owns one. `build()` sets it.
        takes_context: Whether `build()` takes a `context_shape` and `call()` a
            `context`, the context of the layer's call. The layer then builds the kind
            at the first call with a context.
        over_time: Whether the context has a time axis, `(batch, timesteps, ...)`.
            `build()` and `call()` then get the context of one timestep: `call()` of the
            timestep that is read first. `by_timestep()` gets the whole context.
        all_states: Whether one object computes all the states that it is passed for,
            of a layer or of a cell. `build()` then gets a list of shapes, one for each
            state, `units` is a tuple, and `call()`, `by_timestep()` and `preview()`
            return a list of tensors.

    Example:
    >>> @keras.saving.register_keras_serializable()
    ... class PerRow(keras_init_lstm.InitialState):
    ...     '''The initial state of row `i` of the batch is `i`.'''
    ...
    ...     def call(self, batch_size, training=False):
    ...         rows = keras.ops.arange(batch_size, dtype=self.variable_dtype)
    ...         return keras.ops.tile(rows[:, None], (1, self.units))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=[PerRow(), None])
    >>> h, c = layer.get_initial_state(batch_size=2)
    >>> keras.ops.convert_to_numpy(h).tolist()
    [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """

    takes_context: bool = False
    over_time: bool = False
    all_states: bool = False
    per_position: bool = False
    units_axis: int = -1
    units: Any
    state_shape: Any
    value: keras.Variable
    stddev: keras.Variable
    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    # Hide both methods from type checkers, which would otherwise accept any argument
    # and any attribute.
    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> InitialState:
            # `copy()` calls the class with the same arguments, because a configuration
            # can't hold a lambda. Only `__new__()` sees the arguments of a subclass's
            # constructor.
            kind = super().__new__(cls, *args, **named_arguments(kwargs))
            object.__setattr__(kind, "_made_with", (args, kwargs))
            return kind

        def __getattr__(self, name: str) -> Any:
            # `build()` creates `units`, `value` and `stddev`. Name it in the error.
            classes = type(self).__mro__
            if any(name in vars(cls).get("__annotations__", ()) for cls in classes):
                raise AttributeError(self._missing(name))
            return getattr(super(), "__getattr__", super().__getattribute__)(name)

    # The attributes that only the constructor may set, because no call reads them.
    _set_once: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        # PyTorch stores an attribute that is a layer in `_modules`.
        modules = vars(self).get("_modules", {})
        if name in self._set_once and (name in vars(self) or name in modules):
            raise self._cannot_be_set(name, value, "create another object with it")
        super().__setattr__(name, value)

    def _cannot_be_set(self, name: str, value: Any, instead: str) -> ValueError:
        return ValueError(
            f"The attribute `{name}` of {type(self).__name__} {self.name!r} can't be "
            f"set: {instead}, and pass that to a layer before it is built. "
            f"Received: {name}={described(value)}"
        )

    def _missing(self, name: str) -> str:
        if self.built:
            return f"{type(self).__name__} {self.name!r} owns no `{name}`"
        return (
            f"{type(self).__name__} {self.name!r} has no `{name}` before it is built: "
            "call the layer that owns it, or its `get_initial_state(batch_size)`"
        )

    def check(self, state_shape: Shape) -> None:
        """Raises a `ValueError` if the constructor's arguments do not fit the state.

        Args:
            state_shape: `(units,)`, or the whole shape of a ConvLSTM's state, in which
                a size is `None` before it is known.
        """

    def build(self, state_shape: Any) -> None:
        """Creates the variables. See the attribute `state_shape`."""
        self.state_shape = tuple(state_shape)
        if self.all_states:
            self.units = tuple(shape[self.units_axis] for shape in state_shape)
        else:
            self.units = state_shape[self.units_axis]

    def get_build_config(self) -> None:
        return None  # The recurrent layer builds its kinds, also when it is loaded.

    def call(self, batch_size: Any, training: bool = False) -> Any:
        """Returns the initial states of a batch.

        Args:
            batch_size: Python integer or scalar integer tensor.
            training: Python boolean, whether the layer is called in training mode.

        Returns:
            A tensor `(batch_size, *state_shape)` of dtype `variable_dtype`.
        """
        raise NotImplementedError

    def by_timestep(
        self,
        batch_size: Any,
        timesteps: Any,
        training: bool = False,
        context: Any = None,
    ) -> Any:
        """Returns the initial states of the sequences that begin at each timestep.

        By default they equal the initial state of their row in the same call. A kind
        that is drawn, or that differs between timesteps, overrides this.

        Args:
            batch_size: As in `call()`.
            timesteps: Python integer or scalar integer tensor.
            training: As in `call()`.
            context: The context of the layer's call, if `takes_context` is `True`.

        Returns:
            A tensor `(batch_size, timesteps, *state_shape)`, which the layer reads at
            the timesteps of a reset; or `None`, to use the initial states of `call()`.
        """
        return None

    def preview(self, batch_size: int) -> Any:
        """Returns the initial states that a stateful layer shows before a call.

        There is no context yet, and nothing must be drawn. By default it returns NaN
        if the kind takes a context, else `value` if the kind owns one, else the same
        as `call()`.

        Args:
            batch_size: Python integer.

        Returns:
            A tensor `(batch_size, *state_shape)`.
        """
        if self.takes_context and self.all_states:
            shapes = [(batch_size, *shape) for shape in self.state_shape]
            return [ops.full(shape, np.nan) for shape in shapes]
        if self.takes_context:
            return ops.full((batch_size, *self.state_shape), np.nan)
        value = getattr(self, "value", None)
        return self.call(batch_size) if value is None else tile(value, batch_size)

    def copy(self, **kwargs: Any) -> Self:
        """Returns an unbuilt object with the same arguments, except for `kwargs`.

        Unlike `from_config(get_config())`, it takes any callable as an initializer.
        """
        args, given = self._arguments_of_copy()
        copied = type(self)(*args, **{**given, **kwargs})
        if copied.trainable != self.trainable:
            copied.trainable = self.trainable
        return copied

    def _arguments_of_copy(self) -> tuple[Any, Any]:
        return self._made_with

    def hand_over_to(self, other: Self) -> None:
        """Copies what a configuration does not hold to an object made from it.

        `Conditional` copies the weights of its encoder. The default copies nothing.
        """

    def __repr__(self) -> str:
        args, kwargs = self._made_with
        signature = inspect.signature(type(self))
        arguments = dict(signature.bind(*args, **kwargs).arguments)
        for parameter in signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                arguments |= arguments.pop(parameter.name, {})
        shown = ", ".join(
            f"{name}={_brief(value)}"
            for name, value in arguments.items()
            if name not in _BASE_ARGUMENTS
        )
        return f"{type(self).__name__}({shown})"


class OwnedValue(InitialState):
    """Base class of `Fixed` and `Trainable`: every row starts from `value`."""

    _set_once = frozenset({"regularizer", "constraint", "per_position"})

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_number(self, name, value)
        super().__setattr__(name, value)

    def call(self, batch_size: Any, training: bool = False) -> Any:
        return tile(self.value, batch_size)


def refuse_number(kind: InitialState, name: str, value: Any) -> None:
    """Raises a `ValueError` if a variable of a kind would be replaced by a number."""
    is_variable = name in ("value", "mean", "stddev")
    if is_variable and not isinstance(value, keras.Variable):
        instead = "assign to the variable once it is built, or create another object"
        raise kind._cannot_be_set(name, value, instead)


def tile(value: keras.Variable, batch_size: Any) -> Any:
    """Broadcasts `value` to `(batch_size, *value.shape)`."""
    return ops.broadcast_to(value, (batch_size, *value.shape))


def numbers_or_initializer(value: Any, argument: str) -> np.ndarray | Callable:
    """Returns an array of numbers, or an initializer of Keras.

    Raises:
        ValueError: If `value` is neither, or if a number is not finite.
    """
    if not (isinstance(value, (str, dict)) or callable(value)):
        return finite_array(value, argument)
    try:
        if is_legacy(value):
            raise TypeError("not an initializer of Keras 3")
        return keras.initializers.get(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Argument `{argument}` must be a number, an array of shape `(units,)` or "
            f"a Keras initializer. Received: {argument}={described(value)}"
        ) from error


def set_per_position(
    kind: InitialState, per_position: bool, *values: np.ndarray | Callable
) -> None:
    """Sets whether a kind has one value for each position, as a whole array has.

    Raises:
        ValueError: If `per_position` is not a boolean.
    """
    one_of(per_position, "per_position", (False, True))
    # On TensorFlow, assigning the value that the class attribute has does nothing, and
    # `__setattr__()` would not find the attribute in `vars(self)` later.
    kind.__dict__["per_position"] = per_position or any(
        isinstance(value, np.ndarray) and value.ndim > 1 for value in values
    )


def check_numbers(
    kind: InitialState, state_shape: Shape, **values: np.ndarray | Callable
) -> None:
    """Raises a `ValueError` if an array does not fit the state or the kind's dtype.

    Args:
        kind: The object that has the values.
        state_shape: The shape of the state.
        **values: Arrays and initializers, by the argument that they were passed as.
    """
    units = (state_shape[kind.units_axis],)
    has_space = state_shape != units
    space = f", or of the shape of the state {state_shape}" if has_space else ""
    for argument, value in values.items():
        if not isinstance(value, np.ndarray):
            continue
        if value.ndim and not any(fits(value.shape, s) for s in (units, state_shape)):
            raise ValueError(
                f"Argument `{argument}` of {type(kind).__name__} must be a number or "
                f"an array of shape `(units,)` = {units}{space}. "
                f"Received: an array of shape {value.shape}"
            )
        finite_array(value, argument, kind.compute_dtype)
    # An array of two axes sets `per_position` too, so check the arrays first.
    if kind.per_position and not has_space:
        raise ValueError(
            f"Argument `per_position` of {type(kind).__name__} must be False for a "
            f"state of shape {units}, which has no positions: it is for the layers "
            "InitStateConvLSTM1D, 2D and 3D. Received: per_position=True"
        )


def add_variable(
    kind: InitialState, name: str, value: np.ndarray | Callable, **kwargs: Any
) -> keras.Variable:
    """Adds a weight of the shape of the state, from an array or an initializer."""
    initializer = value
    if isinstance(value, np.ndarray):

        def initializer(shape: tuple[int, ...], dtype: Any = None) -> Any:
            array = value
            if array.ndim == 1:
                array = array.reshape(one_axis(shape, kind.units_axis))
            return ops.convert_to_tensor(np.broadcast_to(array, shape), dtype)

    # With autocast, mixed precision would cast the variable before it is broadcast, and
    # sum its gradient over the batch in 16 bits.
    return kind.add_weight(
        name=name,
        shape=kind.state_shape,
        initializer=initializer,
        autocast=False,
        **kwargs,
    )


def one_axis(shape: Sequence[int], axis: int) -> list[int]:
    """Returns a shape with the size of one axis, and ones in place of the others."""
    sizes = [1] * len(shape)
    sizes[axis] = shape[axis]
    return sizes


def serialized(value: np.ndarray | Callable) -> Any:
    """Returns the configuration of an array or an initializer."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    return keras.initializers.serialize(value)


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        short = value.size <= 8
        return str(value.tolist()) if short else f"<array of shape {value.shape}>"
    if isinstance(value, dict) and "class_name" in value:
        return str(value["class_name"])
    return reprlib.repr(value)
