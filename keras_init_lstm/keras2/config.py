"""Rewrites the configurations of Keras 2 models for Keras 3."""

import json
import re
from typing import Any

import keras

from keras_init_lstm._keras import rnn_hands_mask_on
from keras_init_lstm.keras2.layers import (
    MASKED_AS_IN_KERAS2,
    OPERATIONS,
    RECURRENT_AS_IN_KERAS2,
    hard_sigmoid_of_keras2,
)

_OPERATION = {"SlicingOpLambda", "TFOpLambda"}
# Arguments without effect, or whose values the calls of the layers hold too.
_DROPPED = {"batch_input_shape", "input_length", "time_major", "softmax_robust_masking"}
_DROPPED |= {"query_shape", "key_shape", "value_shape"}
# Arguments of some layers without effect, by the class name without "1D", "2D", "3D".
_DROPPED_OF = {
    "SeparableConv": {"kernel_initializer", "kernel_regularizer", "kernel_constraint"},
    "SpatialDropout": {"noise_shape", "trainable"},
}
_REFUSED = {
    "CuDNNGRU": "has its weights in another order: with the package tf_keras, build "
    "the model with `GRU(reset_after=True)` in its place, call `load_weights()` with "
    "this file, as .h5, and save the model",
    "CuDNNLSTM": "has its weights in another order: with the package tf_keras, build "
    "the model with `LSTM` in its place, call `load_weights()` with this file, as "
    ".h5, and save the model",
    "Lambda": "holds code, which is not loaded: replace it by a layer of a custom "
    "class, and save the model again",
}


def for_keras3(text: str | bytes, custom_objects: dict[str, Any]) -> str:
    """Rewrites the JSON configuration of a Keras 2 model for Keras 3.

    Args:
        text: The configuration that Keras 2 wrote.
        custom_objects: As in `keras.models.load_model()`.

    Raises:
        ValueError: If Keras 3 would not compute the same as a layer of Keras 2.
    """
    config = json.loads(text)
    config.pop("compile_config", None)
    # A custom layer may make masks too.
    mask_makers = r'"mask_zero": true|"mask": \[|"Masking"|>'
    has_masks = bool(custom_objects or re.search(mask_makers, json.dumps(config)))
    return json.dumps(_Rewriter(custom_objects, has_masks).rewrite(config))


class _Rewriter:
    def __init__(self, custom_objects: dict[str, Any], has_masks: bool) -> None:
        self._custom_objects = custom_objects
        # The layers of this package that replace layers of Keras.
        self._replacements: dict[str, type] = {}
        self._has_masks = has_masks
        if has_masks:
            self._replacements |= MASKED_AS_IN_KERAS2
            if not rnn_hands_mask_on():
                self._replacements |= RECURRENT_AS_IN_KERAS2

    def rewrite(self, config: Any) -> Any:
        """Returns any part of a configuration, rewritten for Keras 3."""
        if isinstance(config, list):
            return [self.rewrite(part) for part in config]
        if not isinstance(config, dict):
            return config
        class_name = config.get("class_name")
        inner: Any = config.get("config")
        if class_name in ("Policy", "PolicyV1"):
            return inner["name"]  # The dtype policy of mixed precision.
        if class_name == "__ellipsis__":
            return "Ellipsis"
        if class_name == "Sequential":
            config = _with_input(config)
        elif isinstance(inner, dict) and "name" in inner:
            config = self._rewrite_layer(config)
        config = {
            key: keras.saving.serialize_keras_object(hard_sigmoid_of_keras2)
            if value == "hard_sigmoid" and key.endswith("activation")
            else self.rewrite(value)
            for key, value in config.items()
        }
        if "input_layers" in config:
            self._rewrite_calls(config)
        return config

    def _rewrite_layer(self, layer: dict[str, Any]) -> dict[str, Any]:
        name, config = layer["class_name"], layer["config"]
        registered = layer.get("registered_name") or name
        if keras.saving.get_registered_object(registered, self._custom_objects):
            return layer
        if reason := self._why_refused(layer, registered):
            raise ValueError(f"The layer {config['name']} ({name}) {reason}.")
        if name == "InputLayer":
            return layer
        dropped = _DROPPED | _DROPPED_OF.get(name[:-2], set())
        config = {key: value for key, value in config.items() if key not in dropped}
        if name == "LeakyReLU" and "alpha" in config:
            config["negative_slope"] = config.pop("alpha")
        if name in ("GRU", "GRUCell"):
            config.setdefault("reset_after", False)  # Early files leave it out.
        if config.get("groups") == 1:
            del config["groups"]  # Some convolutions of Keras 3 don't take it.
        axis = config.get("axis")
        if isinstance(axis, list) and len(axis) == 1:
            config["axis"] = axis[0]
        if name in _OPERATION:
            kept = {key: config[key] for key in ("name", "dtype", "function")}
            return {**layer, **_class("TensorFlowOperation"), "config": kept}
        if name in self._replacements:
            return {**layer, **_class(name), "config": config}
        if hasattr(keras.layers, name):
            layer = {**layer, "module": "keras.layers", "registered_name": None}
        return {**layer, "config": config}

    def _why_refused(self, layer: dict[str, Any], registered: str) -> str | None:
        """Returns why a layer can't be loaded, and what to do; `None` if it can."""
        name, config = layer["class_name"], layer["config"]
        if name in _REFUSED:
            return _REFUSED[name]
        if name in _OPERATION:
            if config["function"] in OPERATIONS:
                return None
            return (
                f"is the operation `tf.{config['function']}`, which is not loaded: "
                "replace it by a layer, and save the model again"
            )
        if name not in (*vars(keras.layers), "Functional", "Model"):
            return (
                "is of a class that Keras 3 does not have: pass a class that computes "
                f"the same, as custom_objects={{{registered!r}: ...}}"
            )
        if self._has_masks and name == "MultiHeadAttention":
            return (
                "is used with masks, which it removes from its inputs in Keras 3: "
                "replace it by `Attention`, or build the model in Keras 3"
            )
        if config.get("time_major"):
            return "has `time_major=True`, which Keras 3 does not have"
        if config.get("num_constants"):
            return "takes `constants`, which Keras 3 does not have"
        if name == "InputLayer" and (config.get("ragged") or config.get("sparse")):
            return "takes ragged or sparse tensors, which are not loaded"
        return None

    def _rewrite_calls(self, model: dict[str, Any]) -> None:
        """Rewrites the calls of the layers of a Functional model."""
        layers = {layer["name"]: layer for layer in model["layers"]}

        def is_call(value: Any) -> bool:
            return bool(value) and isinstance(value[0], str) and value[0] in layers

        def with_tensors(value: Any) -> Any:
            """Returns the arguments of a call, with tensors as Keras 3 saves them."""
            if isinstance(value, dict):
                return {key: with_tensors(part) for key, part in value.items()}
            if not isinstance(value, list):
                return value
            if value[:1] == ["_CONSTANT_VALUE"]:
                return value[2]
            if not is_call(value):
                return [with_tensors(part) for part in value]
            name, node, index = value[:3]
            # Keras 3 does not count the call that made a model.
            return _tensor(name, node - ("layers" in layers[name]["config"]), index)

        def endpoint(value: Any) -> Any:
            """Returns an input or output of the model, or a structure of them."""
            if isinstance(value, dict):
                return {key: endpoint(part) for key, part in value.items()}
            if not is_call(value):
                return [endpoint(part) for part in value]
            name, node, index = value
            # For the inputs and outputs of a model, Keras 3 counts that call, except
            # for Sequential models.
            return [name, node - (layers[name]["class_name"] == "Sequential"), index]

        for key in ("input_layers", "output_layers"):
            points = endpoint(model[key])
            is_single = isinstance(points, list) and len(points) == 1
            model[key] = points[0] if is_single else points
        for name, layer in layers.items():
            calls = [_arguments(layer, node) for node in layer["inbound_nodes"]]
            calls = layer["inbound_nodes"] = with_tensors(calls)
            if "layers" not in layer["config"]:
                # Keras 3 builds the layer from its calls, which have all arguments.
                layer.pop("build_config", None)
            for index, call in enumerate(calls):
                if self._has_masks and "initial_state" in call["kwargs"]:
                    mask = {**_class("MaskOf"), "name": f"{name}_mask_{index}"}
                    mask["config"] = {"name": mask["name"]}
                    mask["inbound_nodes"] = [{"args": call["args"], "kwargs": {}}]
                    model["layers"].insert(model["layers"].index(layer), mask)
                    call["kwargs"].setdefault("mask", _tensor(mask["name"], 0, 0))


def _with_input(model: dict[str, Any]) -> dict[str, Any]:
    """Returns a Sequential model with its input layer, which early files leave out."""
    config = model["config"]
    if isinstance(config, list):
        config = {"name": model.get("name", "sequential"), "layers": config}
    first = config["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if shape and first["class_name"] != "InputLayer":
        inputs = {"name": f"{first['config']['name']}_input", "batch_shape": shape}
        layer = {"module": "keras.layers", "class_name": "InputLayer", "config": inputs}
        config = {**config, "layers": [layer, *config["layers"]]}
    return {**model, "config": config}


def _arguments(layer: dict[str, Any], node: Any) -> dict[str, Any]:
    """Returns the arguments of a call. Keras 2 saved them with the first tensor."""
    first: Any = node
    while not (isinstance(first, list) and isinstance(first[0], str)):
        first = next(iter(first.values() if isinstance(first, dict) else first))
    given = first[3] if len(first) > 3 else {}
    kwargs = {key: value for key, value in given.items() if value is not None}
    if layer["class_name"] == "TensorFlowOperation":
        kwargs.pop("name", None)
        return {"args": [], "kwargs": {"first": node, **kwargs}}
    if "initial_state" in kwargs or "_CONSTANT_VALUE" in json.dumps(node):
        raise ValueError(
            f"The layer {layer['name']} ({layer['class_name']}) is called with a "
            "constant tensor, which is not loaded: make it an input of the model."
        )
    if isinstance(node, list) and len(node) == 1:
        node = node[0]
    elif layer["class_name"] in RECURRENT_AS_IN_KERAS2:
        # Keras 2 saved the states in one list with the sequences.
        kwargs["initial_state"] = node[1:]
        node = node[0]
    return {"args": [node], "kwargs": kwargs}


def _class(class_name: str) -> dict[str, Any]:
    """Returns the entries of a configuration that name a class of this package."""
    return {
        "module": "keras_init_lstm",
        "class_name": class_name,
        "registered_name": f"keras_init_lstm>{class_name}",
    }


def _tensor(layer: str, node: int, index: int) -> dict[str, Any]:
    history = [layer, node, index]
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [], "dtype": "float32", "keras_history": history},
    }
