"""The kind of initial state that is drawn at random."""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import keras
from keras import ops

from keras_init_lstm._checks import described, finite_array, one_of
from keras_init_lstm._types import LayerArguments, Numbers, Shape
from keras_init_lstm.backend import backend
from keras_init_lstm.initial_states.base import (
    InitialState,
    add_variable,
    check_numbers,
    refuse_number,
    serialized,
    set_per_position,
    tile,
)

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

Distribution: TypeAlias = Literal["normal", "truncated_normal", "uniform"]
Learned: TypeAlias = bool | Literal["mean", "stddev"]

# `keras.random.truncated_normal` cuts a standard normal distribution at two standard
# deviations. The variance of its draws is 1 - 4 pdf(2) / (cdf(2) - cdf(-2)).
_TRUNCATED_STDDEV = math.sqrt(
    1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2))
)

# Each draws values with mean 0 and standard deviation 1.
_STANDARD_DRAWS = {
    "normal": keras.random.normal,
    "truncated_normal": lambda *args, **kwargs: (
        keras.random.truncated_normal(*args, **kwargs) / _TRUNCATED_STDDEV
    ),
    "uniform": lambda *args, **kwargs: keras.random.uniform(
        *args, minval=-math.sqrt(3), maxval=math.sqrt(3), **kwargs
    ),
}


class SeedGenerator(keras.random.SeedGenerator):
    """A seed generator whose seeds differ between the replicas of a strategy."""

    def next(self, ordered: bool = True) -> Any:
        seed, replica = super().next(ordered), backend.replica_id()
        if isinstance(replica, int) and replica == 0:
            return seed
        return seed + ops.cast(ops.stack([replica, 0]), seed.dtype)


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class Sampled(InitialState):
    """An initial state that is drawn at random for each row at each training call.

    It owns `mean` and `stddev`, each of shape `(units,)`. With `learned=True` both
    are learned by the reparameterisation `mean + stddev * noise` of [Kingma and
    Welling, 2014](https://arxiv.org/abs/1312.6114). With `learned="mean"` the initial
    state is learned under a noise that stays as it is: [Zimmermann, Tietz and
    Grothmann, 2012](https://doi.org/10.1007/978-3-642-35289-8_37) use noisy initial
    states as a regulariser.

    Args:
        mean: Number or array of shape `(units,)`. For a ConvLSTM, also an array of
            the shape of the state. Defaults to `0.0`.
        stddev: Non-negative number or array as `mean`, the standard deviation. Defaults
            to `0.1`: the hidden state of an LSTM lies between -1 and 1.
        distribution: One of `"normal"`, `"truncated_normal"` (a normal
            distribution cut at two of its standard deviations, and scaled to the
            standard deviation `stddev`) and `"uniform"`. Defaults to `"normal"`.
        learned: What is learned: `True` for `mean` and `stddev`, `"mean"` or
            `"stddev"` for one of them, `False` for neither. A constraint keeps a
            learned `stddev` non-negative. Defaults to `False`.
        at_inference: The initial state of a call that is not in training mode:
            `"mean"`, or `"sample"` for a draw. Defaults to `"mean"`.
        seed: Python integer that makes the draws reproducible. The states of one
            layer draw independently of each other even if they share a seed. Two
            layers with the same seed draw the same, as with `Dropout`, and so do the
            two directions of a `Bidirectional`. The replicas of a
            `tf.distribute.Strategy` draw independently, and so do the processes of
            `torch.distributed`, such as with `DistributedDataParallel`. Defaults to
            `None`.
        per_position: Boolean, for the layers InitStateConvLSTM1D, 2D and 3D. If
            `False`, one value for each filter is drawn and broadcast over all
            positions; if `True`, `mean` and `stddev` have the shape of the state,
            `(rows, cols, filters)`, and a value is drawn for each filter at each
            position. An array of that shape sets it. Defaults to `False`.
        **kwargs: Base layer arguments: `name`, `dtype` and `trainable`.

    Raises:
        ValueError: If `mean` or `stddev` is not a number or an array, or is not
            finite, if `stddev` is negative, or if `distribution`, `learned`,
            `at_inference` or `seed` is not one of the values above. When it is passed
            to a layer, if the shape of `mean` or `stddev` does not fit the state, or if
            `per_position` is `True` and the layer is not a ConvLSTM.

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
    _set_once = frozenset({"learned", "seed", "per_position"})

    def __init__(
        self,
        mean: Numbers = 0.0,
        stddev: Numbers = 0.1,
        distribution: Distribution = "normal",
        learned: Learned = False,
        at_inference: Literal["mean", "sample"] = "mean",
        seed: int | None = None,
        per_position: bool = False,
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
        one_of(learned, "learned", (True, False, "mean", "stddev"))
        if not (seed is None or isinstance(seed, int)):
            raise ValueError(
                "Argument `seed` must be an integer or None. "
                f"Received: seed={described(seed)}"
            )
        self.distribution = distribution
        self.learned = learned
        self.at_inference = at_inference
        self.seed = seed
        set_per_position(self, per_position, self._mean, self._stddev)

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_number(self, name, value)
        if name == "distribution":
            one_of(value, name, _STANDARD_DRAWS)
        if name == "at_inference":
            one_of(value, name, ("mean", "sample"))
        super().__setattr__(name, value)

    def copy(self, **kwargs: Any) -> Self:
        copied = super().copy(**kwargs)
        # A user may have set both attributes after construction.
        copied.distribution = self.distribution
        copied.at_inference = self.at_inference
        return copied

    def check(self, state_shape: Shape) -> None:
        check_numbers(self, state_shape, mean=self._mean, stddev=self._stddev)

    def build(self, state_shape: tuple[int, ...]) -> None:
        super().build(state_shape)
        self.mean = self.value = add_variable(
            self, "mean", self._mean, trainable=self.learned in (True, "mean")
        )
        learns_stddev = self.learned in (True, "stddev")
        self.stddev = add_variable(
            self,
            "stddev",
            self._stddev,
            trainable=learns_stddev,
            constraint="non_neg" if learns_stddev else None,
        )
        seed = self.seed
        if seed is not None:
            # With the name in the seed, h0 and c0 draw independently.
            seed = random.Random(f"{seed} {self.name}").getrandbits(31)
        self.seed_generator = SeedGenerator(seed)

    def call(self, batch_size: Any, training: bool = False) -> Any:
        if not (training or self.at_inference == "sample"):
            return tile(self.mean, batch_size)
        if not training and backend.traces_for_onnx():
            raise ValueError(
                "An ONNX file can't draw an initial state: it would hold one draw, or "
                "an operation that no runtime knows. Set the attribute `at_inference` "
                f"of the initial state {self.name} to 'mean' before the export. "
                "Received: at_inference='sample'"
            )
        backend.check_runs_once(
            f"The sampled initial state {self.name}", "it would be drawn again"
        )
        noise = _STANDARD_DRAWS[self.distribution](
            (batch_size, *self.state_shape),
            dtype=self.variable_dtype,
            seed=self.seed_generator,
        )
        return self.mean + self.stddev * noise

    def by_timestep(
        self,
        batch_size: Any,
        timesteps: Any,
        training: bool = False,
        context: Any = None,
    ) -> Any:
        if not (training or self.at_inference == "sample"):
            return None
        draws = self.call(batch_size * timesteps, training)
        return ops.reshape(draws, (batch_size, timesteps, *self.state_shape))

    # Keras does not save the seed generator of a layer. Without it, a resumed run would
    # not draw the same numbers as an uninterrupted run.
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
            "mean": serialized(self._mean),
            "stddev": serialized(self._stddev),
            "distribution": self.distribution,
            "learned": self.learned,
            "at_inference": self.at_inference,
            "seed": self.seed,
            "per_position": self.per_position,
        }
