"""The types of the arguments that several modules take."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

# The sizes of a tensor. A size is `None` if it is not known yet.
Shape: TypeAlias = tuple[int | None, ...]


class SupportsArray(Protocol):
    """An array, or a tensor or variable of any backend."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


# One number for all units, or one number for each unit.
Numbers: TypeAlias = float | Sequence[float] | SupportsArray

# Keras takes an instance, its name or its configuration.
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Any]
Activation: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
Regularizer: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
Constraint: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None

UseCudnn: TypeAlias = bool | Literal["auto"]


class LayerArguments(TypedDict, total=False):
    """The `**kwargs` of every Keras layer."""

    name: str | None
    dtype: Any
    trainable: bool
    autocast: bool


class RNNArguments(LayerArguments, total=False):
    """The `**kwargs` of `RNN`."""

    activity_regularizer: Regularizer


class LSTMArguments(LayerArguments, total=False):
    """The `**kwargs` of `LSTM` and `GRU`."""

    implementation: Literal[1, 2]
    zero_output_for_mask: bool


class ConvLSTMArguments(LayerArguments, total=False):
    """The `**kwargs` of `ConvLSTM1D`, `ConvLSTM2D` and `ConvLSTM3D`."""

    unroll: bool
    zero_output_for_mask: bool


class SimpleRNNArguments(LayerArguments, total=False):
    """The `**kwargs` of `SimpleRNN`."""

    zero_output_for_mask: bool
