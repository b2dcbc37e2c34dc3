"""Layers and functions that Keras 3 does not have, for models of Keras 2."""

import functools
from typing import Any

import keras
from keras import ops

from keras_init_lstm._keras import mask_of
from keras_init_lstm.adoption import add_counterpart
from keras_init_lstm.layers.conv_lstm import (
    InitStateConvLSTM1D,
    InitStateConvLSTM2D,
    InitStateConvLSTM3D,
)
from keras_init_lstm.layers.gru import InitStateGRU
from keras_init_lstm.layers.lstm import InitStateLSTM
from keras_init_lstm.layers.rnn import InitStateRNN
from keras_init_lstm.layers.simple_rnn import InitStateSimpleRNN

PACKAGE = "keras_init_lstm"


@keras.saving.register_keras_serializable(package="keras_init_lstm")
def hard_sigmoid_of_keras2(x: Any) -> Any:
    """The activation "hard_sigmoid" of Keras 2. In Keras 3 its slope is 1/6."""
    return ops.clip(0.2 * x + 0.5, 0.0, 1.0)


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class MaskOf(keras.layers.Layer):
    """Returns the implicit mask of sequences as a tensor `(batch, timesteps)`.

    Keras 2 passes it to a layer that is called with an initial state; Keras 3 does not.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True

    def call(self, sequences: Any, mask: Any = None) -> Any:
        if mask is None:
            return ops.ones(ops.shape(sequences)[:2], dtype="bool")
        return mask

    def compute_mask(self, sequences: Any, previous_mask: Any) -> None:
        return None


class _MaskOfAll:
    """A merged timestep is valid if it is valid in all inputs; in Keras 3, in any."""

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        masks = [m for m in mask or [] if m is not None]
        return functools.reduce(ops.logical_and, masks) if masks else None


class _MaskOfConcatenated(_MaskOfAll):
    axis: int

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        if mask is None or self.axis in (-1, len(inputs[0].shape) - 1):
            return super().compute_mask(inputs, mask)
        if any(m is None for m in mask):
            return None
        # `ops.concatenate` makes a node whose name a layer of the file may have.
        return functools.reduce(lambda a, b: ops.append(a, b, self.axis), mask)


class _HandsMaskOn:
    """Passes its mask to the next layer, which an RNN of Keras 3.16 does not do."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.supports_masking = True


class _MaskOfSteps(_HandsMaskOn):
    name: str
    layer: Any

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        inner_mask = self.layer.compute_mask(inputs[:, 0], None)
        if isinstance(self.layer, keras.Model):
            inner_mask = mask_of(self.layer.outputs[0])
        if inner_mask is not None or len(getattr(mask, "shape", ())) > 2:
            raise ValueError(
                f"The layer {self.name} (TimeDistributed) has a mask inside each of "
                "its timesteps, which it passes on in Keras 2, but not in Keras 3."
            )
        return mask


class _Softmax:
    def call(self, inputs: Any, mask: Any = None) -> Any:
        if mask is not None:
            # If all is masked, Keras 3 returns zeros, and Keras 2 an average.
            largest = (
                65504.0
                if keras.backend.standardize_dtype(inputs.dtype) == "float16"
                else 1e9
            )
            inputs -= largest * (1.0 - ops.cast(mask, inputs.dtype))
        return super().call(inputs)  # type: ignore[misc]


class _NoMask:
    def compute_mask(self, inputs: Any, previous_mask: Any = None) -> None:
        return None


def _masked_as_in_keras2(base: type, mixin: type, package: str = PACKAGE) -> type:
    layer = type(base.__name__, (mixin, base), {})
    layer.__module__ = __name__
    return keras.saving.register_keras_serializable(package)(layer)


# The layers that treat masks differently in Keras 3 than in Keras 2.
MASKED_AS_IN_KERAS2 = {
    name: _masked_as_in_keras2(getattr(keras.layers, name), mixin)
    for name, mixin in {
        "Add": _MaskOfAll,
        "Average": _MaskOfAll,
        "Concatenate": _MaskOfConcatenated,
        "Identity": _NoMask,
        "Maximum": _MaskOfAll,
        "Minimum": _MaskOfAll,
        "Multiply": _MaskOfAll,
        "Normalization": _NoMask,
        "Rescaling": _NoMask,
        "Softmax": _Softmax,
        "Subtract": _MaskOfAll,
        "TimeDistributed": _MaskOfSteps,
    }.items()
}
# The recurrent layers, for versions of Keras whose RNN does not pass its mask on.
RECURRENT_AS_IN_KERAS2 = {
    name: _masked_as_in_keras2(getattr(keras.layers, name), _HandsMaskOn)
    for name in (
        *("Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"),
        *("GRU", "LSTM", "RNN", "SimpleRNN"),
    )
}
# The layers of this package by which `with_initial_state()` replaces them.
for _cls in (
    *(InitStateGRU, InitStateLSTM, InitStateRNN, InitStateSimpleRNN),
    *(InitStateConvLSTM1D, InitStateConvLSTM2D, InitStateConvLSTM3D),
):
    add_counterpart(
        RECURRENT_AS_IN_KERAS2[_cls.keras_layer.__name__],
        _masked_as_in_keras2(_cls, _HandsMaskOn, f"{PACKAGE}.keras2"),
    )


@keras.saving.register_keras_serializable(package="keras_init_lstm")
class TensorFlowOperation(keras.layers.Layer):
    """One operation on tensors, such as `h * 2.0`, which Keras 2 saved by its name.

    Args:
        function: The name of the operation, a key of `OPERATIONS`.
        **kwargs: Base layer arguments, such as `name` and `dtype`.

    Call arguments:
        first: The first argument of the operation. The others have TensorFlow's names.
    """

    def __init__(self, function: str, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.function = function
        self.supports_masking = True

    def call(self, first: Any, **arguments: Any) -> Any:
        return OPERATIONS[self.function](first, **arguments)

    def compute_mask(self, first: Any, previous_mask: Any) -> None:
        return None  # Keras 2 drops the mask too, without a warning.

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "function": self.function}


def _binary(function: Any) -> Any:
    return lambda x, y: function(x, y)


def _reduction(function: Any) -> Any:
    return lambda x, axis=None, keepdims=False: function(
        x, axis=tuple(axis) if isinstance(axis, list) else axis, keepdims=keepdims
    )


def _mean(x: Any, axis: Any = None, keepdims: bool = False) -> Any:
    # `tf.reduce_mean` of integers returns an integer.
    return ops.cast(_reduction(ops.mean)(x, axis, keepdims), x.dtype)


def _item(x: Any, slice_spec: Any) -> Any:
    def part(spec: Any) -> Any:
        if isinstance(spec, dict):
            return slice(spec["start"], spec["stop"], spec["step"])
        return ... if isinstance(spec, str) else spec

    if isinstance(slice_spec, list):
        return x[tuple(part(spec) for spec in slice_spec)]
    return x[part(slice_spec)]


def _cast(x: Any, dtype: str) -> Any:
    return ops.cast(x, dtype.removeprefix("<dtype: '").removesuffix("'>"))


# TensorFlow's names of the operations, with functions of TensorFlow's arguments.
OPERATIONS = {
    "__operators__.add": _binary(ops.add),
    "__operators__.getitem": _item,
    "cast": _cast,
    "clip_by_value": lambda x, clip_value_min, clip_value_max: ops.clip(
        x, clip_value_min, clip_value_max
    ),
    "compat.v1.squeeze": lambda x, axis=None: ops.squeeze(x, axis),
    "compat.v1.transpose": lambda x, perm=None, **_: ops.transpose(x, perm),
    "concat": lambda x, axis: ops.concatenate(x, axis),
    "expand_dims": lambda x, axis: ops.expand_dims(x, axis),
    "linalg.matmul": lambda x, b: ops.matmul(x, b),
    "math.abs": ops.abs,
    "math.add": _binary(ops.add),
    "math.equal": _binary(ops.equal),
    "math.exp": ops.exp,
    "math.greater": _binary(ops.greater),
    "math.greater_equal": _binary(ops.greater_equal),
    "math.less": _binary(ops.less),
    "math.less_equal": _binary(ops.less_equal),
    "math.log": ops.log,
    "math.logical_and": _binary(ops.logical_and),
    "math.logical_not": ops.logical_not,
    "math.logical_or": _binary(ops.logical_or),
    "math.maximum": _binary(ops.maximum),
    "math.minimum": _binary(ops.minimum),
    "math.multiply": _binary(ops.multiply),
    "math.negative": ops.negative,
    "math.not_equal": _binary(ops.not_equal),
    "math.pow": _binary(ops.power),
    "math.reduce_max": _reduction(ops.max),
    "math.reduce_mean": _mean,
    "math.reduce_min": _reduction(ops.min),
    "math.reduce_sum": _reduction(ops.sum),
    "math.sigmoid": ops.sigmoid,
    "math.sqrt": ops.sqrt,
    "math.square": ops.square,
    "math.subtract": _binary(ops.subtract),
    "math.tanh": ops.tanh,
    "math.truediv": _binary(ops.true_divide),
    "nn.relu": ops.relu,
    "nn.softmax": lambda x, axis=-1: ops.softmax(x, axis),
    "ones_like": ops.ones_like,
    "reshape": lambda x, shape: ops.reshape(x, shape),
    "reverse": lambda x, axis: functools.reduce(ops.flip, axis, x),
    "stack": lambda x, axis=0: ops.stack(x, axis),
    "where": lambda condition, x, y: ops.where(condition, x, y),
    "zeros_like": ops.zeros_like,
}
