"""Which loop runs a layer: a fused loop, cuDNN, or Keras's loop."""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import Any, Literal

from keras_init_lstm import loops
from keras_init_lstm._checks import one_of
from keras_init_lstm._copies import left_out_of_config
from keras_init_lstm._keras import DECIDES_TO_FUSE_DIRECTIONS
from keras_init_lstm.backend import NotFusedError, backend
from keras_init_lstm.layers._resets import restarting_loop
from keras_init_lstm.loops.call import InPlaceOfMask
from keras_init_lstm.loops.exact_cell import why_not_exact

_avoids_cudnn = contextvars.ContextVar("_avoids_cudnn", default=False)


class UseFusedAttribute:
    """The attribute `use_fused` of a layer whose cell the fused loops know."""

    def __get__(self, layer: Any, cls: type | None = None) -> bool | Literal["auto"]:
        if layer is None:
            return self  # type: ignore[return-value]
        return layer._use_fused

    def __set__(self, layer: Any, value: Any) -> None:
        one_of(value, "use_fused", ("auto", True, False))
        layer._use_fused = value


class UseCudnnAttribute:
    """The attribute `use_cudnn` of a layer, as it was set.

    On JAX and PyTorch, `keras.layers.Bidirectional` runs two layers whose `use_cudnn`
    is True or "auto" in one call of cuDNN that starts from zeros. So that no owned
    state is lost, a layer that has one answers False when Keras asks for this purpose.
    Each direction may still run cuDNN for itself.
    """

    def __get__(self, layer: Any, cls: type | None = None) -> bool | Literal["auto"]:
        if layer is None:
            return self  # type: ignore[return-value]
        if _avoids_cudnn.get():
            return False
        # The caller first: while Keras constructs the layer, it owns no states yet.
        if backend.is_called_by(DECIDES_TO_FUSE_DIRECTIONS) and any(
            layer.initial_state
        ):
            return False
        return layer._use_cudnn

    def __set__(self, layer: Any, value: Any) -> None:
        layer._use_cudnn = value


def arguments_of_loop(layer: Any) -> dict[str, Any]:
    """The arguments of a layer that choose its loop. Keras saves none of them."""
    use_fused = {"use_fused": layer.use_fused} if hasattr(layer, "use_fused") else {}
    return {**use_fused, **left_out_of_config(layer)}


def bit_identical(cls: type) -> dict[str, Any]:
    """Arguments with which a layer computes exactly what the layer of Keras does."""
    return {"use_fused": False} if hasattr(cls, "use_fused") else {}


def check_loop(
    layer: Any, sequences: Any, mask: Any, training: bool, loop_of_keras: Any
) -> None:
    """Raises a `ValueError` where `use_fused=True` and no fused loop can run.

    `run_loop()` raises it too, but by then Keras has drawn for dropout.

    Args:
        layer: This and the next four as in `run_loop()`.
        sequences: As in `run_loop()`.
        mask: As in `run_loop()`, but not `InPlaceOfMask`.
        training: As in `run_loop()`.
        loop_of_keras: As in `run_loop()`.
    """
    if getattr(layer, "use_fused", False) is True:
        try:
            _check_inner_loop(layer, loop_of_keras)
            loops.check_runs(layer, sequences, mask, training)
        except NotFusedError as reason:
            raise _not_fused(reason) from reason


def run_loop(
    layer: Any,
    sequences: Any,
    initial_state: Any,
    mask: Any,
    training: bool,
    loop_of_keras: Callable[..., Any],
) -> Any:
    """Does what the `inner_loop()` of Keras does, by the loop that the layer chooses.

    Args:
        layer: A recurrent layer of this package.
        sequences: This and the next three as in the `inner_loop()` of Keras.
        initial_state: As in the `inner_loop()` of Keras.
        mask: As in the `inner_loop()` of Keras; or `InPlaceOfMask`.
        training: As in the `inner_loop()` of Keras.
        loop_of_keras: The `inner_loop()` of the layer's base class.
    """

    def plain(
        sequences: Any, initial_state: Any, mask: Any, training: bool = False
    ) -> Any:
        backend.check_length_is_traced(layer.name)
        restarts = InPlaceOfMask.of(mask)
        if restarts.reset_mask is not None:
            return restarting_loop(layer, sequences, initial_state, restarts, training)
        token = _avoids_cudnn.set(_must_call_cell(layer))
        try:
            return loop_of_keras(
                sequences, initial_state, restarts.mask, training=training
            )
        finally:
            _avoids_cudnn.reset(token)

    use_fused = getattr(layer, "use_fused", False)
    if use_fused:
        try:
            _check_inner_loop(layer, loop_of_keras)
            return loops.inner_loop(
                layer, sequences, initial_state, mask, training, plain
            )
        except NotFusedError as reason:
            if use_fused is True:
                raise _not_fused(reason) from reason
    return plain(sequences, initial_state, mask, training=training)


def _must_call_cell(layer: Any) -> bool:
    """Whether cuDNN, which Keras gives the weights alone, would compute another cell.

    Raises:
        ValueError: If it would, and `use_cudnn=True`.
    """
    use_cudnn = getattr(layer, "_use_cudnn", False)
    reason = why_not_exact(layer) if use_cudnn else None
    if reason and use_cudnn is True:
        raise ValueError(
            f"cuDNN does not support {reason}. Pass `use_cudnn='auto'`. Received: "
            "use_cudnn=True"
        )
    return reason is not None


def _check_inner_loop(layer: Any, loop_of_keras: Any) -> None:
    """Raises a `NotFusedError` if a second base class brings another loop."""
    if loop_of_keras.__func__ is not layer.keras_layer.inner_loop:
        raise NotFusedError("an `inner_loop()` that is not Keras's")


def _not_fused(reason: NotFusedError) -> ValueError:
    return ValueError(
        f"The fused loop does not support {reason}. Pass `use_fused='auto'` to run "
        "Keras's own loop. Received: use_fused=True"
    )
