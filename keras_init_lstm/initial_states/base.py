"""What a state starts from: one small Keras layer for each kind of initial state.

A kind owns variables of shape `(units,)` and makes from them one row for each
sequence of a batch. A new kind is a new subclass of `InitialState` in a file of its
own: the rest of the package asks only for what that class declares.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

import keras
import numpy as np
from keras import ops

from keras_init_lstm._checks import described, finite_array, is_legacy
from keras_init_lstm._keras import named_arguments

if TYPE_CHECKING:
    from typing_extensions import Self

# What every layer of Keras may be made with.
_BASE_ARGUMENTS = ("name", "dtype", "trainable", "autocast", "activity_regularizer")


class InitialState(keras.layers.Layer):
    """Base class of the kinds of initial state. Subclass it for custom kinds.

    A recurrent layer that is given the object makes a copy for each of its states,
    names the copy (`h0`, `c0`), gives it the dtype policy of the layer and builds it. A
    subclass implements `call()`; `build()` if it has variables; `get_config()` if its
    constructor takes arguments, and `check()` if they can be wrong for a number of
    units. With `takes_context = True` it is computed from the context that the layer
    is called with.

    Args:
        **kwargs: Base layer arguments: `name`, `dtype` and `trainable`.

    Attributes:
        units: The size of the state, once it is built.
        value: The variable `(units,)` that rows start from at inference, if the kind
            owns one, once it is built: what `assign_initial_state()` overwrites and
            `plot_initial_state()` draws. `build()` sets it.
        stddev: The variable `(units,)` that tells by how much rows differ in training,
            if the kind owns one.
        takes_context: Whether `build()` takes a `context_shape` and `call()` a
            `context`, what the recurrent layer was called with. `build()` then waits
            for the first call that has one.
        over_time: Whether that context has a time axis, `(batch, timesteps, ...)`.
            `build()` and `call()` are then given what it is at one timestep, `call()`
            at the one that is read first, and `by_timestep()` is given the whole.

    Example:
    >>> @keras.saving.register_keras_serializable()
    ... class PerRow(keras_init_lstm.InitialState):
    ...     '''Row `i` of the batch starts from the number `i`.'''
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
    units: int
    value: keras.Variable
    stddev: keras.Variable
    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    # Type checkers must not see these two: they would then accept any argument and any
    # attribute.
    if not TYPE_CHECKING:

        def __new__(cls, *args: Any, **kwargs: Any) -> InitialState:
            # A layer copies a kind once for each state, by a call with the same
            # arguments. A configuration would not do, since it holds no lambda. Only
            # here are the arguments seen of every subclass's constructor.
            kind = super().__new__(cls, *args, **named_arguments(kwargs))
            object.__setattr__(kind, "_made_with", (args, kwargs))
            return kind

        def __getattr__(self, name: str) -> Any:
            # `value` and its like do not exist before `build()`: say so.
            classes = type(self).__mro__
            if any(name in vars(cls).get("__annotations__", ()) for cls in classes):
                raise AttributeError(self._missing(name))
            return getattr(super(), "__getattr__", super().__getattribute__)(name)

    # Arguments of the constructor that no call reads.
    _read_once: ClassVar[frozenset[str]] = frozenset()

    def __setattr__(self, name: str, value: Any) -> None:
        # Where PyTorch keeps the layers inside of one.
        modules = vars(self).get("_modules", {})
        if name in self._read_once and (name in vars(self) or name in modules):
            raise self._cannot_be_set(name, value, "make another object with it")
        super().__setattr__(name, value)

    def _cannot_be_set(self, name: str, value: Any, instead: str) -> ValueError:
        return ValueError(
            f"The attribute `{name}` of {type(self).__name__} {self.name!r} can't be "
            f"set: {instead}, and give that to a layer before it is built. "
            f"Received: {name}={described(value)}"
        )

    def _missing(self, name: str) -> str:
        if self.built:
            return f"{type(self).__name__} {self.name!r} owns no `{name}`"
        return (
            f"{type(self).__name__} {self.name!r} has no `{name}` before it is built: "
            "call the layer that owns it, or its `get_initial_state(batch_size)`"
        )

    def check(self, units: int) -> None:
        """Raises a `ValueError` if the constructor's arguments do not fit `units`."""

    def build(self, state_shape: tuple[int]) -> None:
        """Creates the variables. `state_shape` is `(units,)`."""
        (self.units,) = state_shape

    def get_build_config(self) -> None:
        return None  # The layer that owns it builds it, also when it is loaded.

    def call(self, batch_size: Any, training: bool = False) -> Any:
        """Returns the initial states of a batch.

        Args:
            batch_size: Python integer or scalar integer tensor.
            training: Python boolean, whether the owner is called in training mode.

        Returns:
            A tensor `(batch_size, units)` of dtype `variable_dtype`.
        """
        raise NotImplementedError

    def by_timestep(
        self,
        batch_size: Any,
        timesteps: Any,
        training: bool = False,
        context: Any = None,
    ) -> Any:
        """Returns the initial states of the sequences that begin within a batch.

        By default they equal the initial state of their row in the same call. A kind
        that is drawn, or that differs with time, overrides this.

        Args:
            batch_size: As in `call()`.
            timesteps: Python integer or scalar integer tensor.
            training: As in `call()`.
            context: What the layer was called with, where `takes_context` is set.

        Returns:
            A tensor `(batch_size, timesteps, units)`, which is read at the timesteps
            where a sequence begins; or `None` for what `call()` returned.
        """
        return None

    def preview(self, batch_size: int) -> Any:
        """Returns what a stream shows as its state before the first call.

        It has no context and must not draw: NaN for a kind that takes a context, else
        the `value` if the kind owns one, else the same as `call()`.

        Args:
            batch_size: Python integer.

        Returns:
            A tensor `(batch_size, units)`.
        """
        if self.takes_context:
            return ops.full((batch_size, self.units), np.nan)
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
        """Gives a copy from the configuration what a configuration does not hold.

        Such as the weights of an encoder that the constructor was given.
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
    """What `Fixed` and `Trainable` share: every row starts from `value (units,)`."""

    _read_once = frozenset({"regularizer", "constraint"})

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_number(self, name, value)
        super().__setattr__(name, value)

    def call(self, batch_size: Any, training: bool = False) -> Any:
        return tile(self.value, batch_size)


def refuse_number(kind: InitialState, name: str, value: Any) -> None:
    """Raises a `ValueError` if a variable of a kind is to be replaced by a number."""
    is_variable = name in ("value", "mean", "stddev")
    if is_variable and not isinstance(value, keras.Variable):
        instead = "assign to the variable once it is built, or make another object"
        raise kind._cannot_be_set(name, value, instead)


def tile(value: keras.Variable, batch_size: Any) -> Any:
    """Repeats `value (units,)` for each row: `(batch_size, units)`."""
    return ops.broadcast_to(value, (batch_size, *value.shape))


def numbers_or_initializer(value: Any, argument: str) -> np.ndarray | Callable:
    """Returns an array of numbers, or an initializer of Keras.

    Raises:
        ValueError: If `value` is neither.
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


def check_numbers(
    kind: InitialState, argument: str, value: np.ndarray | Callable, units: int
) -> None:
    """Raises a `ValueError` if an array does not fit `units` or the kind's dtype."""
    if not isinstance(value, np.ndarray):
        return
    if value.shape not in ((), (units,)):
        raise ValueError(
            f"Argument `{argument}` of {type(kind).__name__} must be a number or an "
            f"array of shape `(units,)` = ({units},). "
            f"Received: an array of shape {value.shape}"
        )
    finite_array(value, argument, kind.compute_dtype)


def add_variable(
    kind: InitialState, name: str, value: np.ndarray | Callable, **kwargs: Any
) -> keras.Variable:
    """Returns a new weight `(units,)` of a kind, made of an array or initializer."""
    initializer = value
    if isinstance(value, np.ndarray):

        def initializer(shape: tuple[int], dtype: Any = None) -> Any:
            return ops.convert_to_tensor(np.broadcast_to(value, shape), dtype)

    # Without autocast, so that under mixed precision it is tiled in float32 and cast
    # afterwards: its gradient, a sum over the batch, is then added up in float32.
    return kind.add_weight(
        name=name,
        shape=(kind.units,),
        initializer=initializer,
        autocast=False,
        **kwargs,
    )


def serialized(value: np.ndarray | Callable) -> Any:
    """Returns an array or initializer as it stands in a configuration."""
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
