"""What a state starts from: one small Keras layer for each kind of initial state.

A kind owns variables of shape `(units,)` and makes from them one row for each
sequence of a batch. A new kind is a new subclass of `InitialState`; nothing else
changes.
"""

import math
import random
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import keras
import numpy as np
import tensorflow as tf
from keras import ops
from numpy.typing import ArrayLike

# What a variable starts from: an array `()` or `(units,)`, or a Keras initializer.
Start: TypeAlias = "np.ndarray | Callable"

_PACKAGE = "keras_init_lstm"

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
    """Base class of the kinds of initial state.

    The recurrent layer that owns the object names it (`h0`, `c0`), gives it its
    own dtype policy and builds it. A subclass implements `call()`; `build()` if it
    has variables; `get_config()` if its constructor takes arguments, and `check()`
    if they can be wrong for a number of units.

    Args:
        **kwargs: Base layer arguments, such as `name`, `dtype` and `trainable`.

    Example:
    >>> from keras_init_lstm.initial_states import InitialState
    >>> @keras.saving.register_keras_serializable()
    ... class PerRow(InitialState):
    ...     '''Row `i` of the batch starts from the number `i`.'''
    ...
    ...     def call(self, batch_size, training=False):
    ...         rows = keras.ops.arange(batch_size, dtype=self.variable_dtype)
    ...         return keras.ops.tile(rows[:, None], (1, self.units))
    >>> layer = keras_init_lstm.InitStateLSTM(4, initial_state=[PerRow(), None])
    >>> h, c = layer.get_initial_state(batch_size=2)
    >>> h.numpy().tolist()
    [[0.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """

    # The variable `(units,)` that `assign_initial_state()` overwrites, if any.
    assignable: keras.Variable | None = None

    # Whether `call()` takes the `context` that the layer was called with.
    takes_context = False

    def __new__(cls, *args: Any, **kwargs: Any) -> "InitialState":
        initial_state = super().__new__(cls, *args, **kwargs)
        object.__setattr__(initial_state, "_arguments", (args, kwargs))
        return initial_state

    def copy(self, **kwargs: Any) -> "InitialState":
        """Returns an unbuilt object of the same arguments, but for `kwargs`.

        Unlike a way through `get_config()`, it takes any callable as an initializer.
        """
        args, given = self._arguments
        copied = type(self)(*args, **{**given, **kwargs})
        copied.trainable = self.trainable
        return copied

    def check(self, units: int) -> None:
        """Raises a `ValueError` if the constructor's arguments do not fit `units`."""

    def build(self, state_shape: tuple[int]) -> None:
        """Creates the variables. `state_shape` is `(units,)`."""
        (self.units,) = state_shape

    def get_build_config(self) -> None:
        return None  # The owner builds it.

    def call(self, batch_size: Any, training: bool = False) -> tf.Tensor:
        """Returns the state that a batch starts from.

        Args:
            batch_size: Python integer or scalar integer tensor.
            training: Python boolean, whether the owner is called in training mode.

        Returns:
            A tensor `(batch_size, units)` of dtype `variable_dtype`.
        """
        raise NotImplementedError


class _OwnedValue(InitialState):
    """What `Fixed` and `Trainable` share: every row starts from `value (units,)`."""

    def call(self, batch_size: Any, training: bool = False) -> tf.Tensor:
        return tile(self.value, batch_size)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Fixed(_OwnedValue):
    """An initial state that training leaves as it is.

    Owns a non-trainable `value` of shape `(units,)`, from which every row of
    every batch starts. It is saved with the model's weights.

    Args:
        value: Number, array of shape `(units,)`, or Keras initializer (an
            instance or its name). Defaults to `"zeros"`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: If `value` is neither of these, or is not finite.

    Example:
    >>> start = keras_init_lstm.Fixed([0.5, 1.0])
    >>> layer = keras_init_lstm.InitStateLSTM(2, initial_state=[start, None])
    >>> h, c = layer.get_initial_state(batch_size=3)
    >>> h.numpy().tolist()
    [[0.5, 1.0], [0.5, 1.0], [0.5, 1.0]]
    """

    def __init__(self, value: Any = "zeros", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._start = _array_or_initializer(value, "value")

    def check(self, units: int) -> None:
        _check_array(self, "value", self._start, units)

    def build(self, state_shape: tuple[int]) -> None:
        super().build(state_shape)
        self.value = self.assignable = _add_variable(
            self, "value", self._start, trainable=False
        )

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "value": _serialize(self._start)}


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
        **kwargs: Base layer arguments, such as `name`, `dtype` and `trainable`.

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
        initializer: Any = "zeros",
        regularizer: Any = None,
        constraint: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._start = _array_or_initializer(initializer, "initializer")
        self.regularizer = keras.regularizers.get(regularizer)
        self.constraint = keras.constraints.get(constraint)

    def check(self, units: int) -> None:
        _check_array(self, "initializer", self._start, units)

    def build(self, state_shape: tuple[int]) -> None:
        super().build(state_shape)
        self.value = self.assignable = _add_variable(
            self,
            "value",
            self._start,
            regularizer=self.regularizer,
            constraint=self.constraint,
        )

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "initializer": _serialize(self._start),
            "regularizer": keras.regularizers.serialize(self.regularizer),
            "constraint": keras.constraints.serialize(self.constraint),
        }


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Sampled(InitialState):
    """An initial state drawn at random: for each row, at each call, its own draw.

    Owns `mean` and `stddev`, each of shape `(units,)`. With `trainable=True` both
    are learned by the reparameterisation `mean + stddev * noise` of [Kingma and
    Welling, 2014](https://arxiv.org/abs/1312.6114). Noisy initial states as a
    regulariser are treated in [Zimmermann, Tietz and Grothmann,
    2012](https://doi.org/10.1007/978-3-642-35289-8_37).

    Args:
        mean: Number or array of shape `(units,)`. Defaults to `0.0`.
        stddev: Non-negative number or array of shape `(units,)`, the standard
            deviation. Defaults to `1.0`.
        distribution: One of `"normal"`, `"truncated_normal"` (a normal
            distribution cut at two of its standard deviations and widened so that
            `stddev` is that of the draws) and `"uniform"`. Defaults to `"normal"`.
        trainable: Boolean, whether `mean` and `stddev` are learned; `stddev` is
            then kept non-negative by a constraint. Defaults to `False`.
        at_inference: What a row starts from when the layer is not training:
            `"mean"`, or `"sample"` for a draw. Defaults to `"mean"`.
        seed: Python integer that makes the draws reproducible. The states of one
            layer draw independently of each other also when they share a seed; two
            layers with the same seed draw the same, as with `Dropout`, and so do the
            two directions of a `Bidirectional`. Defaults to `None`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Raises:
        ValueError: If `mean` or `stddev` is not a number or an array, or is not
            finite, if `stddev` is negative, or if `distribution`, `at_inference`
            or `seed` is not one of the values above.

    Example:
    >>> layer = keras_init_lstm.InitStateLSTM(
    ...     64, initial_state=[Sampled(0.5, 0.1, seed=1), Sampled(0.2, 0.3, seed=1)]
    ... )
    >>> outputs = layer(np.zeros((8, 5, 3)), training=True)
    >>> h, c = layer.get_initial_state(batch_size=8)
    >>> float(h[0, 0]), float(c[0, 0])
    (0.5, 0.20000000298023224)
    """

    def __init__(
        self,
        mean: ArrayLike = 0.0,
        stddev: ArrayLike = 1.0,
        distribution: str = "normal",
        trainable: bool = False,
        at_inference: str = "mean",
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._mean = finite_array(mean, "mean")
        self._stddev = finite_array(stddev, "stddev")
        if (self._stddev < 0).any():
            raise ValueError(
                "Argument `stddev` must not be negative. "
                f"Received: stddev={_show(stddev)}"
            )
        _check_choice("distribution", distribution, _STANDARD_DRAWS)
        _check_choice("at_inference", at_inference, ("mean", "sample"))
        if not (seed is None or isinstance(seed, int)):
            raise ValueError(
                f"Argument `seed` must be an integer or None. Received: seed={seed}"
            )
        self.distribution = distribution
        # Not `self.trainable`: that one may be switched off and on again for a
        # whole model, which must not make a given distribution a learned one.
        self.learned = bool(trainable)
        self.at_inference = at_inference
        self.seed = seed

    def check(self, units: int) -> None:
        _check_array(self, "mean", self._mean, units)
        _check_array(self, "stddev", self._stddev, units)

    def build(self, state_shape: tuple[int]) -> None:
        super().build(state_shape)
        self.mean = self.assignable = _add_variable(
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

    def call(self, batch_size: Any, training: bool = False) -> tf.Tensor:
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

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "mean": _serialize(self._mean),
            "stddev": _serialize(self._stddev),
            "distribution": self.distribution,
            "trainable": self.learned,
            "frozen": not self.trainable,
            "at_inference": self.at_inference,
            "seed": self.seed,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Sampled":
        config = dict(config)
        frozen = config.pop("frozen", False)
        initial_state = cls(**config)
        initial_state.trainable = not frozen
        return initial_state


_NAMES = {"fixed": Fixed, "sampled": Sampled, "trainable": Trainable}


def get(entry: Any) -> InitialState | None:
    """Returns the object that an entry of `initial_state` stands for.

    Args:
        entry: `None` or `"zeros"`, a number, an array of shape `(units,)`, one of
            `"fixed"`, `"sampled"` and `"trainable"`, an `InitialState`, or the
            serialized form of one.

    Returns:
        An `InitialState`, or `None` for a state that starts from zeros.

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
    try:
        return Fixed(finite_array(entry, "initial_state"))
    except ValueError as error:
        raise ValueError(
            "An entry of `initial_state` must be None, 'zeros', a finite number, a "
            f"finite array of shape `(units,)`, one of {sorted(_NAMES)}, or an object "
            "such as `Fixed(value)`, `Sampled(mean, stddev)` or "
            "`Trainable(initializer)`. "
            f"Received: {_show(entry)}"
        ) from error


def tile(value: keras.Variable, batch_size: Any) -> tf.Tensor:
    """Repeats `value (units,)` for each row: `(batch_size, units)`."""
    return ops.broadcast_to(value, (batch_size, *value.shape))


def finite_array(value: Any, argument: str, dtype: str = "float64") -> np.ndarray:
    """Returns `value` as a new float64 array that is finite in `dtype`.

    float64 holds every value of the narrower float types, so no bit is lost.

    Raises:
        ValueError: If `value` is not made of real numbers, or is not finite.
    """
    try:
        array = np.asarray(value)
        if array.dtype.kind in "bcmMSUO":
            raise TypeError("not real numbers")
        array = array.astype("float64")
    except (TypeError, ValueError, NotImplementedError) as error:
        raise ValueError(
            f"Argument `{argument}` must be a number or an array of numbers. "
            f"Received: {argument}={_show(value)}"
        ) from error
    if not (np.abs(array) <= tf.as_dtype(dtype).max).all():
        raise ValueError(
            f"Argument `{argument}` must be finite in dtype {dtype}. "
            f"Received: {argument}={_show(value)}"
        )
    return array


def is_legacy(value: Any) -> bool:
    """Whether `value` is an object of `tf_keras`, the legacy Keras 2 package."""
    return any(c.__module__.split(".")[0] == "tf_keras" for c in type(value).__mro__)


def received(value: Any) -> str:
    """What came, as it stands in a message: named if it is of `tf_keras`."""
    return f"{value} of the legacy package tf_keras" if is_legacy(value) else f"{value}"


def _show(value: Any) -> str:
    if tf.is_symbolic_tensor(value):
        return f"{value} (a symbolic tensor; only values known now can be checked)"
    if is_legacy(value):
        return f"{value} (a legacy tf_keras object; this package works with Keras 3)"
    return f"{value!r} (of type {type(value).__name__})"


def _array_or_initializer(value: Any, argument: str) -> Start:
    if not (isinstance(value, (str, dict)) or callable(value)):
        return finite_array(value, argument)
    try:
        if is_legacy(value):
            raise TypeError("not an initializer of Keras 3")
        return keras.initializers.get(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"Argument `{argument}` must be a number, an array of shape `(units,)` or "
            f"a Keras initializer. Received: {argument}={_show(value)}"
        ) from error


def _serialize(start: Start) -> Any:
    if isinstance(start, np.ndarray):
        return start.tolist()
    return keras.initializers.serialize(start)


def _add_variable(
    layer: InitialState, name: str, start: Start, **kwargs: Any
) -> keras.Variable:
    if isinstance(start, np.ndarray):

        def initializer(shape: tuple[int], dtype: Any = None) -> tf.Tensor:
            return ops.convert_to_tensor(np.broadcast_to(start, shape), dtype)

    else:
        initializer = start
    # Without autocast: tiled in its own dtype, and cast after, the gradients of
    # the rows are added up in the variable's precision under mixed policies too.
    return layer.add_weight(
        name=name,
        shape=(layer.units,),
        initializer=initializer,
        autocast=False,
        **kwargs,
    )


def _check_array(layer: InitialState, argument: str, start: Start, units: int) -> None:
    if not isinstance(start, np.ndarray):
        return
    if start.shape not in ((), (units,)):
        raise ValueError(
            f"Argument `{argument}` of {type(layer).__name__} must be a number or an "
            f"array of shape `(units,)` = ({units},). "
            f"Received: an array of shape {start.shape}"
        )
    finite_array(start, argument, layer.compute_dtype)


def _check_choice(argument: str, value: Any, choices: Iterable[str]) -> None:
    if value not in tuple(choices):
        raise ValueError(
            f"Argument `{argument}` must be one of {sorted(choices)}. "
            f"Received: {argument}={_show(value)}"
        )


def fits(shape: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    """Whether two shapes, `None` for what is unknown, can be the same."""
    return len(shape) == len(expected) and all(
        a == b or None in (a, b) for a, b in zip(shape, expected, strict=True)
    )


def shape_text(shape: tuple[int | None, ...]) -> str:
    """A shape as it is written in messages, with `batch` for what is unknown."""
    return str(tuple("batch" if size is None else size for size in shape)).replace(
        "'batch'", "batch"
    )
