"""The private attributes of Keras that the package reads, all of them.

Each function says what Keras has no public way to say. `tests/test_keras.py` has a
test for each, so that a release of Keras that changes one is named by it.
"""

import functools
import inspect
import re
import types
from collections.abc import Callable, Collection
from typing import Any

import keras

# The attributes in which a Functional model keeps its layers, in one order.
LISTS_OF_LAYERS = ("_operations", "_layers")

# The code by which `Bidirectional`, from 3.15 on, decides to run both directions in one
# call of cuDNN from zeros. Keras has no way in which a layer could decline.
DECIDES_TO_FUSE_DIRECTIONS = frozenset(
    method.__code__
    for name, method in vars(keras.layers.Bidirectional).items()
    if name.startswith("_can_attempt_fused")
)

# The modules that trace a model when it is exported to ONNX.
ONNX_EXPORTERS = ("keras.src.export.onnx", "tf2onnx.", "jax2onnx.", "torch.onnx.")

# The modules in which `model.export()` calls the tracer of PyTorch.
_EXPORTERS_BY_TRACE = ("keras.src.export.onnx", "keras.src.export.openvino")


def layers_within(
    layer: keras.layers.Layer, include_self: bool = True, recursive: bool = True
) -> list[keras.layers.Layer]:
    """The layers inside any layer, whether or not that is a model."""
    return list(layer._flatten_layers(include_self, recursive))


def forget_layer(layer: keras.layers.Layer, inner: keras.layers.Layer) -> None:
    """Takes a layer that is no longer an attribute out of the layers inside another.

    Keras keeps it there, with its weights, when the attribute is set or deleted.
    """
    layer._tracker.untrack(inner)


@functools.cache
def _methods_of(cls: Any) -> frozenset[str]:
    # Keras wraps `build()` and `quantize()` of every object.
    methods = {name for name in dir(cls) if callable(getattr(cls, name))}
    return frozenset(methods - {"build", "quantize"})


def has_replaced_methods(layer: keras.layers.Layer) -> bool:
    """Whether a method of the class of a layer was replaced on the object."""
    cls: Any = type(layer)
    return not _methods_of(cls).isdisjoint(vars(layer))


def set_trainable_of_itself(layer: keras.layers.Layer, trainable: bool) -> None:
    """Sets `trainable`, which the public setter sets on the layers inside as well."""
    layer._trainable = trainable


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """What a model was compiled with; `get_compile_config()` holds no functions."""
    return dict(model._compile_config.config)


def trace(call: Callable[..., Any], *args: Any) -> Any:
    """Calls a function with symbolic tensors, as Keras builds layers by their call.

    The function is given tensors of the backend; it is called only for the variables
    that it makes.
    """
    from keras.src import backend

    return backend.compute_output_spec(call, *args)


def clone_uncompiled(
    model: keras.Model, inputs: Any, clone_layer: Callable[[Any], Any]
) -> keras.Model:
    """Clones a model without what it was compiled with.

    `clone_model()` also compiles the clone of a compiled model, from a configuration
    that holds only losses and metrics which are registered with Keras.
    """
    compiled, model.compiled = model.compiled, False
    try:
        return keras.models.clone_model(model, inputs, clone_function=clone_layer)
    finally:
        model.compiled = compiled


def named_arguments(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a layer, to be handed to `Layer.__new__()`.

    Of a class without `get_config()` Keras keeps them there if all are numbers or text:
    a dtype policy would keep such a layer from being saved.
    """
    policy: Any = kwargs.get("dtype")
    return kwargs | ({"dtype": policy.name} if hasattr(policy, "name") else {})


def layer_and_reason(error: Exception) -> tuple[str | None, str]:
    """The layer that `load_model()` could not make, if it is known, and the reason.

    The error has them in its text alone, after the whole configuration of each layer
    around.
    """
    *configs, reason = str(error).split("Exception encountered: ")
    name = re.search(r".*config=.*?'name': '(.*?)'", "".join(configs[-1:]), re.S)
    return (name[1] if name else None), reason


def output_shape_of(layer: keras.layers.Lambda) -> Any:
    """The argument `output_shape` that a `Lambda` was made with."""
    return layer._output_shape


def is_empty(variable: keras.Variable) -> bool:
    """Whether a variable holds no value, as within an epoch of `fit()` on JAX."""
    return variable._value is None


def write_back(model: keras.layers.Layer) -> None:
    """Gives the variables of a model their present values, within `fit()` on JAX.

    They are in a state there that Keras hands from step to step.
    """
    if hasattr(model, "jax_state_sync"):
        model.jax_state_sync()


def begin_at_epoch(model: keras.Model, epoch: int | None) -> None:
    """Lets `fit()` begin at an epoch, in place of its argument `initial_epoch`."""
    model._initial_epoch = epoch


def data_of_fit() -> Any:
    """The object from which the running `fit()` takes its batches, or `None`.

    Keras tells a callback nothing about the data, so this looks for the local variable
    of `fit()` among the callers.
    """
    epoch_iterator = _local_of_a_caller("epoch_iterator")
    return None if epoch_iterator is None else epoch_iterator.data_adapter


def exports_any_length() -> bool:
    """Whether `model.export()` runs for inputs with unknown dimensions after the first.

    Keras then traces with a size of one, and tells a layer nothing about it. So this
    looks for the local variable of the exporter among the callers.
    """
    signature = _local_of_a_caller("input_signature", _EXPORTERS_BY_TRACE)
    specs = keras.tree.flatten(signature)
    return signature is not None and any(None in tuple(s.shape)[1:] for s in specs)


def _local_of_a_caller(name: str, modules: Collection[str] | None = None) -> Any:
    """A local variable of the nearest caller that has it, or `None`."""
    frame = inspect.currentframe()
    while frame is not None:
        if modules is None or frame.f_globals.get("__name__") in modules:
            value = frame.f_locals.get(name)
            if value is not None:
                return value
        frame = frame.f_back
    return None


def epoch_of_data(data: Any) -> int | None:
    """The number from which Keras 3.16 draws the order of an epoch.

    It counts the epochs of one call of `fit()`, whatever the first epoch is. An older
    Keras draws the order from the global generators, and has no such number.
    """
    return getattr(data, "_epoch", None)


def set_epoch_of_data(data: Any, epoch: int) -> None:
    """Sets the number that `epoch_of_data()` returns."""
    data._epoch = epoch


def build_metrics(model: keras.Model, batch: Any) -> None:
    """Builds the metrics of a model, as the first batch of `fit()` does."""
    model._symbolic_build(data_batch=batch)


def mask_of(tensor: Any) -> Any:
    """The mask that Keras keeps with a tensor, or `None`."""
    return getattr(tensor, "_keras_mask", None)


def rnn_hands_mask_on() -> bool:
    """Whether a recurrent layer of Keras hands its mask on to the next layer.

    Up to Keras 3.15 it does. Later ones use the mask of their input, and warn that they
    do not hand it on.
    """
    cell = types.SimpleNamespace(call=None, state_size=1)
    return bool(keras.layers.RNN(cell, name="asked").supports_masking)


def infers_shapes() -> bool:
    """Whether layers are called for the shapes of their outputs, and nothing else."""
    with keras.SymbolicScope() as scope:
        return scope.original_scope is not None


def rnn(*args: Any, **kwargs: Any) -> Any:
    """The loop of Keras. The public layers only offer it around the step of a cell."""
    from keras.src import backend

    return backend.rnn(*args, **kwargs)


def takes_training(cell: Any) -> bool:
    """Whether the `call()` of a cell, which need not be a layer, takes `training`."""
    return bool(getattr(cell, "_call_has_training_arg", False))


def run_through(model: keras.Model, inputs: Any, call: Any) -> Any:
    """Calls the operations of a Functional model one by one, by a function of yours.

    `call(operation, *args, **kwargs)` is given the arguments of each operation.
    """
    return model._run_through_graph(inputs, lambda operation: operation, call)


def in_stateless_scope() -> bool:
    """Whether what is assigned to variables goes to a scope, and not into them."""
    with keras.StatelessScope() as scope:
        return scope.original_scope is not None


class ReplacedVariable(keras.Variable):
    """A variable of PyTorch that takes a new tensor, where others are written into.

    A backward pass that comes later still needs the tensor that was read before. A
    subclass implements `copied()`.
    """

    def copied(self, value: Any) -> Any:
        """Returns a copy of a tensor that no gradient flows into."""
        raise NotImplementedError

    def _initialize(self, value: Any) -> None:
        self._value = value

    def _direct_assign(self, value: Any) -> None:
        self._value = self.copied(value)
