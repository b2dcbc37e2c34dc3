"""What a state starts from: one small Keras layer for each kind of initial state.

A kind owns variables of shape `(units,)` and makes from them one row for each
sequence of a batch. A new kind is a new subclass of `InitialState` in a file of its
own: the rest of the package asks only for what that class declares.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias, TypedDict

import keras
import numpy as np
from keras import ops

from keras_init_lstm.validation import (
    described,
    finite_array,
    is_legacy,
    one_of,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack


class SupportsArray(Protocol):
    """An array, or a tensor or variable of any backend."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


class LayerArguments(TypedDict, total=False):
    """The arguments that every layer of Keras takes."""

    name: str | None
    dtype: Any
    trainable: bool


# One number for all units, or one for each.
Numbers: TypeAlias = float | list[float] | tuple[float, ...] | SupportsArray
# As Keras takes it: an instance, its name or its configuration.
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Any]
Distribution: TypeAlias = Literal["normal", "truncated_normal", "uniform"]

_PACKAGE = "keras_init_lstm"
# What the configuration of every layer of Keras may hold.
_BASE_ARGUMENTS = ("name", "dtype", "trainable", "autocast", "activity_regularizer")

# What `keras.random.truncated_normal` draws, a standard normal cut at two
# standard deviations, has the variance 1 - 4 pdf(2) / (cdf(2) - cdf(-2)).
_TRUNCATED_STDDEV = math.sqrt(
    1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
)

# Each draws `(batch, units)` values with mean 0 and standard deviation 1.
_STANDARD_DRAWS = {
    "normal": keras.random.normal,
    "truncated_normal": lambda *args, **kwargs: (
        keras.random.truncated_normal(*args, **kwargs) / _TRUNCATED_STDDEV
    ),
    "uniform": lambda *args, **kwargs: keras.random.uniform(
        *args, minval=-math.sqrt(3), maxval=math.sqrt(3), **kwargs
    ),
}


class InitialState(keras.layers.Layer):
    """Base class of the kinds of initial state, for kinds of one's own.

    The recurrent layer that is given the object makes a copy of it for each of its
    states, names that (`h0`, `c0`), gives it its own dtype policy and builds it. A
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
    units: int
    value: keras.Variable
    stddev: keras.Variable

    if not TYPE_CHECKING:  # Or a type checker would take any misspelt attribute.

        def __getattr__(self, name: str) -> Any:
            if name in InitialState.__annotations__ | type(self).__annotations__:
                raise AttributeError(self._missing(name))
            return getattr(super(), "__getattr__", super().__getattribute__)(name)

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
        return None  # It is the layer that owns it which builds it.

    def call(self, batch_size: Any, training: bool = False) -> Any:
        """Returns the state that a batch starts from.

        Args:
            batch_size: Python integer or scalar integer tensor.
            training: Python boolean, whether the owner is called in training mode.

        Returns:
            A tensor `(batch_size, units)` of dtype `variable_dtype`.
        """
        raise NotImplementedError

    def preview(self, batch_size: int) -> Any:
        """Returns what a stream that has not begun yet shows as its state.

        It is looked at without a context, and must not draw: the same as `call()` at
        inference where a `value` is owned.

        Args:
            batch_size: Python integer.

        Returns:
            A tensor `(batch_size, units)`.
        """
        value = getattr(self, "value", None)
        return self.call(batch_size) if value is None else tile(value, batch_size)

    def copy(self, **kwargs: Any) -> Self:
        """Returns an unbuilt object of the same arguments, but for `kwargs`."""
        base = {
            "name": self.name,
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
            "trainable": self.trainable,
        }
        # The arguments themselves, of which a configuration can't hold every one.
        return type(self).from_config({**base, **self._arguments(), **kwargs})

    def hand_over_to(self, other: Self) -> None:
        """Gives `other`, made from the configuration of this one, what that lacks."""

    def _arguments(self) -> dict[str, Any]:
        """The arguments of the constructor, as far as possible not serialized."""
        ours = self.get_config()
        return {key: ours[key] for key in ours if key not in _BASE_ARGUMENTS}

    def __repr__(self) -> str:
        given = {k: v for k, v in self._arguments().items() if v is not None}
        shown = ", ".join(f"{name}={_brief(value)}" for name, value in given.items())
        return f"{type(self).__name__}({shown})"


class _OwnedValue(InitialState):
    """What `Fixed` and `Trainable` share: every row starts from `value (units,)`."""

    def call(self, batch_size: Any, training: bool = False) -> Any:
        return tile(self.value, batch_size)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Fixed(_OwnedValue):
    """An initial state that training leaves as it is.

    Owns a non-trainable `value` of shape `(units,)`, from which every row of
    every batch starts. It is saved with the model's weights.

    Args:
        value: Number, array of shape `(units,)`, or Keras initializer (an
            instance or its name). Defaults to `"zeros"`.
        **kwargs: Base layer arguments: `name` and `dtype`.

    Raises:
        ValueError: If `value` is neither of these, or is not finite.

    Example:
    >>> start = keras_init_lstm.Fixed([0.5, 1.0])
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=[start, None])
    >>> h, c = layer.get_initial_state(batch_size=3)
    >>> keras.ops.convert_to_numpy(h).tolist()
    [[0.5, 1.0], [0.5, 1.0], [0.5, 1.0]]
    """

    def __init__(
        self, value: Numbers | Initializer = "zeros", **kwargs: Unpack[LayerArguments]
    ) -> None:
        super().__init__(**kwargs)
        self._given = _numbers_or_initializer(value, "value")

    def check(self, units: int) -> None:
        _check_numbers(self, "value", self._given, units)

    def build(self, state_shape: tuple[int]) -> None:
        super().build(state_shape)
        self.value = _add_variable(self, "value", self._given, trainable=False)

    def _arguments(self) -> dict[str, Any]:
        return {"value": self._given}

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": _serialize(self._given)}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Trainable(_OwnedValue):
    """An initial state that is learned with the other weights.

    Owns a trainable `value` of shape `(units,)`, from which every row of every
    batch starts; its gradient is the sum of the gradients of the rows. Learning
    the initial state of a recurrent network is treated in [Forcada and Carrasco,
    1995](https://doi.org/10.1162/neco.1995.7.5.923).

    Args:
        initializer: Keras initializer (an instance or its name), number, or array
            of shape `(units,)` that learning starts from. Defaults to `"zeros"`.
        regularizer: Keras regularizer of the value. Defaults to `None`.
        constraint: Keras constraint of the value. Defaults to `None`.
        **kwargs: Base layer arguments: `name`, `dtype` and `trainable`.

    Raises:
        ValueError: If `initializer` is neither of these, or is not finite.

    Example:
    >>> start = keras_init_lstm.Trainable(regularizer="l2")
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=start)
    >>> outputs = layer(np.zeros((8, 5, 3)))
    >>> [v.path.split("/", 1)[1] for v in layer.trainable_variables[-2:]]
    ['h0/value', 'c0/value']
    """

    def __init__(
        self,
        initializer: Numbers | Initializer = "zeros",
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self._given = _numbers_or_initializer(initializer, "initializer")
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def check(self, units: int) -> None:
        _check_numbers(self, "initializer", self._given, units)

    def build(self, state_shape: tuple[int]) -> None:
        super().build(state_shape)
        self.value = _add_variable(
            self,
            "value",
            self._given,
            regularizer=self.regularizer,
            constraint=self.constraint,
        )

    def _arguments(self) -> dict[str, Any]:
        return {
            "initializer": self._given,
            "regularizer": self.regularizer,
            "constraint": self.constraint,
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initializer": _serialize(self._given),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Sampled(InitialState):
    """An initial state drawn at random: for each row, at each call, its own draw.

    Owns `mean` and `stddev`, each of shape `(units,)`. With `learned=True` both
    are learned by the reparameterisation `mean + stddev * noise` of [Kingma and
    Welling, 2014](https://arxiv.org/abs/1312.6114). Noisy initial states as a
    regulariser are treated in [Zimmermann, Tietz and Grothmann,
    2012](https://doi.org/10.1007/978-3-642-35289-8_37).

    Args:
        mean: Number or array of shape `(units,)`. Defaults to `0.0`.
        stddev: Non-negative number or array of shape `(units,)`, the standard
            deviation. Defaults to `0.1`: the hidden state of an LSTM lies between -1
            and 1.
        distribution: One of `"normal"`, `"truncated_normal"` (a normal
            distribution cut at two of its standard deviations and widened so that
            `stddev` is that of the draws) and `"uniform"`. Defaults to `"normal"`.
        learned: Boolean, whether `mean` and `stddev` are learned; `stddev` is
            then kept non-negative by a constraint. Defaults to `False`.
        at_inference: What a row starts from when the layer is not training:
            `"mean"`, or `"sample"` for a draw. Defaults to `"mean"`.
        seed: Python integer that makes the draws reproducible. The states of one
            layer draw independently of each other also when they share a seed; two
            layers with the same seed draw the same, as with `Dropout`, and so do the
            two directions of a `Bidirectional`. Defaults to `None`.
        **kwargs: Base layer arguments: `name`, `dtype` and `trainable`.

    Raises:
        ValueError: If `mean` or `stddev` is not a number or an array, or is not
            finite, if `stddev` is negative, or if `distribution`, `learned`,
            `at_inference` or `seed` is not one of the values above.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(
    ...     64, initial_state=[Sampled(0.5, 0.1, seed=1), Sampled(0.2, 0.3, seed=1)]
    ... )
    >>> outputs = layer(np.zeros((8, 5, 3)), training=True)
    >>> h, c = layer.get_initial_state(batch_size=8)
    >>> float(h[0, 0]), float(c[0, 0])
    (0.5, 0.20000000298023224)
    """

    mean: keras.Variable

    def __init__(
        self,
        mean: Numbers = 0.0,
        stddev: Numbers = 0.1,
        distribution: Distribution = "normal",
        learned: bool = False,
        at_inference: Literal["mean", "sample"] = "mean",
        seed: int | None = None,
        **kwargs: Unpack[LayerArguments],
    ) -> None:
        super().__init__(**kwargs)
        self._mean = finite_array(mean, "mean")
        self._stddev = finite_array(stddev, "stddev")
        if (self._stddev < 0).any():
            raise ValueError(
                "Argument `stddev` must not be negative. "
                f"Received: stddev={described(stddev)}"
            )
        one_of(distribution, "distribution", _STANDARD_DRAWS)
        one_of(learned, "learned", (True, False))
        one_of(at_inference, "at_inference", ("mean", "sample"))
        if not (seed is None or isinstance(seed, int)):
            raise ValueError(
                "Argument `seed` must be an integer or None. "
                f"Received: seed={described(seed)}"
            )
        self.distribution = distribution
        self.learned = learned
        self.at_inference = at_inference
        self.seed = seed

    def check(self, units: int) -> None:
        _check_numbers(self, "mean", self._mean, units)
        _check_numbers(self, "stddev", self._stddev, units)

    def build(self, state_shape: tuple[int]) -> None:
        super().build(state_shape)
        self.mean = self.value = _add_variable(
            self, "mean", self._mean, trainable=self.learned
        )
        self.stddev = _add_variable(
            self,
            "stddev",
            self._stddev,
            trainable=self.learned,
            constraint="non_neg" if self.learned else None,
        )
        seed = self.seed
        if seed is not None:
            # The name keeps h0 and c0 apart when they were given the same seed.
            seed = random.Random(f"{seed} {self.name}").getrandbits(31)
        self.seed_generator = keras.random.SeedGenerator(seed)

    def call(self, batch_size: Any, training: bool = False) -> Any:
        if not (training or self.at_inference == "sample"):
            return tile(self.mean, batch_size)
        noise = _STANDARD_DRAWS[self.distribution](
            (batch_size, self.units),
            dtype=self.variable_dtype,
            seed=self.seed_generator,
        )
        return self.mean + self.stddev * noise

    # Keras saves the weights of a layer but not its seed generator, so that a run
    # resumed from a checkpoint would not draw what the unbroken run draws.
    def save_own_variables(self, store: Any) -> None:
        super().save_own_variables(store)
        if self.built:
            store["seed_generator_state"] = self.seed_generator.state

    def load_own_variables(self, store: Any) -> None:
        store = {key: store[key] for key in store.keys()}  # noqa: SIM118, not a dict
        seed_generator_state = store.pop("seed_generator_state", None)
        super().load_own_variables(store)
        if seed_generator_state is not None:
            self.seed_generator.state.assign(seed_generator_state)

    def _arguments(self) -> dict[str, Any]:
        return {
            "mean": self._mean,
            "stddev": self._stddev,
            "distribution": self.distribution,
            "learned": self.learned,
            "at_inference": self.at_inference,
            "seed": self.seed,
        }

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            **self._arguments(),
            "mean": _serialize(self._mean),
            "stddev": _serialize(self._stddev),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        config = dict(config)
        if "frozen" in config:
            # Written before `learned` had a name of its own, and was `trainable`.
            config["learned"] = config["trainable"]
            config["trainable"] = not config.pop("frozen")
        return super().from_config(config)


_NAMES = {"fixed": Fixed, "sampled": Sampled, "trainable": Trainable}


def get(entry: Any) -> InitialState | None:
    """Returns the object that an entry of `initial_state` stands for.

    Args:
        entry: `None` or `"zeros"`, a number, an array of shape `(units,)`, one of
            `"fixed"`, `"sampled"` and `"trainable"`, an `InitialState`, or the
            serialized form of one.

    Returns:
        An `InitialState`, or `None` for what the cell starts from by itself.

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
            " To start from a Keras initializer, pass `Trainable(initializer)`, which "
            "is learned, or `Fixed(initializer)`, which is not."
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


def tile(value: keras.Variable, batch_size: Any) -> Any:
    """Repeats `value (units,)` for each row: `(batch_size, units)`."""
    return ops.broadcast_to(value, (batch_size, *value.shape))


def _numbers_or_initializer(value: Any, argument: str) -> np.ndarray | Callable:
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


def _check_numbers(
    kind: InitialState, argument: str, value: np.ndarray | Callable, units: int
) -> None:
    if not isinstance(value, np.ndarray):
        return
    if value.shape not in ((), (units,)):
        raise ValueError(
            f"Argument `{argument}` of {type(kind).__name__} must be a number or an "
            f"array of shape `(units,)` = ({units},). "
            f"Received: an array of shape {value.shape}"
        )
    finite_array(value, argument, kind.compute_dtype)


def _add_variable(
    kind: InitialState, name: str, given: np.ndarray | Callable, **kwargs: Any
) -> keras.Variable:
    initializer = given
    if isinstance(given, np.ndarray):

        def initializer(shape: tuple[int], dtype: Any = None) -> Any:
            return ops.convert_to_tensor(np.broadcast_to(given, shape), dtype)

    # Without autocast: tiled in its own dtype, and cast after, the gradients of
    # the rows are added up in the variable's precision under mixed policies too.
    return kind.add_weight(
        name=name,
        shape=(kind.units,),
        initializer=initializer,
        autocast=False,
        **kwargs,
    )


def _serialize(value: np.ndarray | Callable) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return keras.initializers.serialize(value)


def _brief(value: Any) -> str:
    if isinstance(value, np.ndarray):
        short = value.size <= 8
        return str(value.tolist()) if short else f"<array of shape {value.shape}>"
    if isinstance(value, (str, int, float, list, dict, keras.layers.Layer)):
        return repr(value)
    return getattr(value, "__name__", type(value).__name__)
