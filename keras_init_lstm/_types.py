"""The types of arguments that several modules take, for type checkers and readers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypedDict

# The sizes of a tensor, `None` for one that is not known yet.
Shape: TypeAlias = tuple[int | None, ...]


class SupportsArray(Protocol):
    """An array, or a tensor or variable of any backend."""

    def __array__(self, *args: Any, **kwargs: Any) -> Any: ...


# One number for all units, or one for each.
Numbers: TypeAlias = float | Sequence[float] | SupportsArray

# As Keras takes them: an instance, its name or its configuration.
Initializer: TypeAlias = str | dict[str, Any] | Callable[..., Any]
Activation: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
Regularizer: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None
Constraint: TypeAlias = str | dict[str, Any] | Callable[..., Any] | None

UseCudnn: TypeAlias = bool | Literal["auto"]


class LayerArguments(TypedDict, total=False):
    """What every layer of Keras takes by `**kwargs`."""

    name: str | None
    dtype: Any
    trainable: bool
    autocast: bool


class RNNArguments(LayerArguments, total=False):
    """What `RNN` takes by `**kwargs`."""

    activity_regularizer: Regularizer


class LSTMArguments(LayerArguments, total=False):
    """What `LSTM` and `GRU` take by `**kwargs`."""

    implementation: Literal[1, 2]
    zero_output_for_mask: bool


class SimpleRNNArguments(LayerArguments, total=False):
    """What `SimpleRNN` takes by `**kwargs`."""

    zero_output_for_mask: bool
