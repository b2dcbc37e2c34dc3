"""All the private attributes of Keras that the package uses.

Each function does something for which Keras has no public API. `tests/test_keras.py`
has a test for each function, which fails if a release of Keras changes it.
"""

import contextlib
import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterator
from typing import Any

import keras

# The attributes in which a Functional model keeps its layers, in the same order.
LISTS_OF_LAYERS = ("_operations", "_layers")

# The code with which `Bidirectional`, from Keras 3.15 on, decides to run both
# directions in one call of cuDNN from zeros. Keras has no API for a layer to decline.
DECIDES_TO_FUSE_DIRECTIONS = frozenset(
    method.__code__
    for name, method in vars(keras.layers.Bidirectional).items()
    if name.startswith("_can_attempt_fused")
)

# The modules that trace a model when it is exported to ONNX.
ONNX_EXPORTERS = ("keras.src.export.onnx", "tf2onnx.", "jax2onnx.", "torch.onnx.")

# The modules in which `model.export()` traces with PyTorch.
_EXPORTERS_BY_TRACE = ("keras.src.export.onnx", "keras.src.export.openvino")


def layers_within(
    layer: keras.layers.Layer, include_self: bool = True, recursive: bool = True
) -> list[keras.layers.Layer]:
    """Returns the layers inside any layer or model."""
    return list(layer._flatten_layers(include_self, recursive))


def forget_layer(layer: keras.layers.Layer, inner: keras.layers.Layer) -> None:
    """Removes `inner` from the layers inside `layer`.

    Keras does not remove it, and its weights, when the attribute is set or deleted.
    """
    layer._tracker.untrack(inner)


@functools.cache
def _methods_of(cls: Any) -> frozenset[str]:
    # Keras replaces `build()` and `quantize()` of every object.
    methods = {name for name in dir(cls) if callable(getattr(cls, name))}
    return frozenset(methods - {"build", "quantize"})


def has_replaced_methods(layer: keras.layers.Layer) -> bool:
    """Whether the object overrides a method of its class."""
    cls: Any = type(layer)
    return not _methods_of(cls).isdisjoint(vars(layer))


def set_trainable_flag(layer: keras.layers.Layer, trainable: bool) -> None:
    """Sets `trainable` of one layer. Keras's setter sets it on inner layers too."""
    layer._trainable = trainable


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Returns the arguments of `compile()`. `get_compile_config()` has no functions."""
    return dict(model._compile_config.config)


def trace(call: Callable[..., Any], *args: Any) -> Any:
    """Calls a function with symbolic tensors, as Keras does to build a layer.

    The function gets tensors of the backend. It is called only to create variables.
    """
    from keras.src import backend

    return backend.compute_output_spec(call, *args)


def clone_uncompiled(
    model: keras.Model, inputs: Any, clone_layer: Callable[[Any], Any]
) -> keras.Model:
    """Clones a model and does not compile the clone.

    `clone_model()` compiles the clone of a compiled model from a configuration, which
    holds only losses and metrics that are registered with Keras.
    """
    compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model, inputs, clone_function=clone_layer)
    finally:
        model.compiled = compiled


def named_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of a layer for `Layer.__new__()`, with the dtype as text.

    For a class without `get_config()`, Keras saves the arguments if all of them are
    numbers or text. With a dtype policy, such a layer could not be saved.
    """
    policy: Any = kwargs.get("dtype")
    return kwargs | ({"dtype": policy.name} if hasattr(policy, "name") else {})


def layer_and_reason(error: Exception) -> tuple[str | None, str]:
    """Returns the name of the layer that `load_model()` can't load, and the reason.

    The error has them only in its text, after the configuration of each outer layer.
    The name is `None` if the text does not have it.
    """
    *configs, reason = str(error).split("Exception encountered: ")
    name = re.search(r".*config=.*?'name': '(.*?)'", "".join(configs[-1:]), re.S)
    return (name[1] if name else None), reason


def output_shape_of(layer: keras.layers.Lambda) -> Any:
    """Returns the argument `output_shape` of a `Lambda`."""
    return layer._output_shape


def is_empty(variable: keras.Variable) -> bool:
    """Whether a variable holds no value, as within an epoch of `fit()` on JAX."""
    return variable._value is None


def write_back(model: keras.layers.Layer) -> None:
    """Writes the training state of `fit()` on JAX to the variables of a model.

    Within an epoch, Keras keeps the values of the variables in this state.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def begin_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Lets `fit()` begin at an epoch, and ignore its argument `initial_epoch`."""
    model._initial_epoch = epoch


def data_of_fit() -> Any:
    """Returns the data adapter of the running `fit()`, or `None`.

    Keras does not pass the data to a callback, so this function looks for a local
    variable of `fit()` among the callers.
    """
    epoch_iterator = _local_of_a_caller("epoch_iterator")
    return None if epoch_iterator is None else epoch_iterator.data_adapter


def exports_any_length() -> bool:
    """Whether `model.export()` runs for inputs with unknown dimensions after the first.

    Keras then traces with a size of one, and does not tell the layer. So this function
    looks for a local variable of the exporter among the callers.
    """
    signature = _local_of_a_caller("input_signature", _EXPORTERS_BY_TRACE)
    specs = keras.tree.flatten(signature)
    return signature is not None and any(None in tuple(s.shape)[1:] for s in specs)


def _local_of_a_caller(name: str, modules: Collection[str] | None = None) -> Any:
    """Returns a local variable of the nearest caller that has it, or `None`."""
    frame = inspect.currentframe()
    while frame is not None:
        if modules is None or frame.f_globals.get("__name__") in modules:
            value = frame.f_locals.get(name)
            if value is not None:
                return value
        frame = frame.f_back
    return None


def epoch_of_data(data: Any) -> int | None:
    """Returns the number from which Keras 3.16 draws the order of an epoch, or `None`.

    It counts the epochs of one call of `fit()`, from any initial epoch. Older versions
    of Keras have no such number: they draw the order from the global generators.
    """
    return getattr(data, "_epoch", None)


def set_epoch_of_data(data: Any, epoch: int) -> None:
    """Sets the number that `epoch_of_data()` returns."""
    data._epoch = epoch


def build_metrics(model: keras.Model, batch: Any) -> None:
    """Builds the metrics of a model, as the first batch of `fit()` does."""
    model._symbolic_build(data_batch=batch)


def mask_of(tensor: Any) -> Any:
    """Returns the implicit mask of a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def rnn_hands_mask_on() -> bool:
    """Whether a recurrent layer of Keras passes its mask to the next layer.

    It does up to Keras 3.15. In later versions, it uses the mask of its input, and
    warns that it does not pass it on.
    """
    cell = types.SimpleNamespace(call=None, state_size=1)
    return bool(keras.layers.RNN(cell, name="asked").supports_masking)


def infers_shapes() -> bool:
    """Whether layers are called only for the shapes of their outputs."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def rnn(*args: Any, **kwargs: Any) -> Any:
    """Runs Keras's loop with any step function. The public layers run only a cell."""
    from keras.src import backend

    return backend.rnn(*args, **kwargs)


@contextlib.contextmanager
def dropout_masks(layer: Any, sequences: Any, states: Any) -> Iterator[None]:
    """Draws the dropout masks of a cell for one loop, as the `call()` of `RNN` does."""
    layer._maybe_config_dropout_masks(layer.cell, sequences[:, 0], states)
    try:
        yield
    finally:
        layer._maybe_reset_dropout_masks(layer.cell)


def is_conv_lstm_cell(cell: Any) -> bool:
    """Whether a cell belongs to a ConvLSTM. Its `state_size` does not tell its states.

    Keras exports the layers `ConvLSTM1D` to `ConvLSTM3D`, but not their cell.
    """
    from keras.src.layers.rnn.conv_lstm import ConvLSTMCell

    return isinstance(cell, ConvLSTMCell)


def takes_training(cell: Any) -> bool:
    """Whether the `call()` of a cell takes `training`. A cell need not be a layer."""
    return bool(getattr(cell, "_call_has_training_arg", False))


def run_through(model: keras.Model, inputs: Any, call: Any) -> Any:
    """Runs a Functional model, with a function that calls its operations.

    The function is called as `call(operation, *args, **kwargs)` for each operation.
    """
    return model._run_through_graph(inputs, lambda operation: operation, call)


def in_stateless_scope() -> bool:
    """Whether assignments change a stateless scope, and not the variables."""
    with keras.StatelessScope() as scope:
        return scope.original_scope is not None


class ReplacedVariable(keras.Variable):
    """A variable of PyTorch whose assignment replaces its tensor.

    Keras's variable overwrites its tensor, which a later backward pass may still need.
    A subclass implements `copied()`.
    """

    def copied(self, value: Any) -> Any:
        """Returns a copy of a tensor through which no gradient flows."""
        raise NotImplementedError

    def _initialize(self, value: Any) -> None:
        self._value = value

    def _direct_assign(self, value: Any) -> None:
        self._value = self.copied(value)
