"""Configurations of models that Keras 2 wrote, as Keras 3 reads them."""

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
# Arguments that say nothing, or nothing that the calls do not say.
_DROPPED = {"batch_input_shape", "input_length", "time_major", "softmax_robust_masking"}
_DROPPED |= {"query_shape", "key_shape", "value_shape"}
# Those of 1D, 2D and 3D.
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
    "Lambda": "holds code, which is not loaded: put a layer of a class of your own "
    "in its place, and save the model again",
}


def for_keras3(text: str | bytes, custom_objects: dict[str, Any]) -> str:
    """Returns what Keras 2 wrote of a model, in JSON, as Keras 3 reads it.

    Raises:
        ValueError: If Keras 3 cannot compute what a layer did.
    """
    config = json.loads(text)
    config.pop("compile_config", None)
    # A custom layer may make masks as well.
    makers = r'"mask_zero": true|"mask": \[|"Masking"|>'
    masked = bool(custom_objects or re.search(makers, json.dumps(config)))
    return json.dumps(_Rewriting(custom_objects, masked).rewrite(config))


class _Rewriting:
    def __init__(self, custom_objects: dict[str, Any], masked: bool) -> None:
        self._custom_objects = custom_objects
        # The layers of this package that stand for layers of Keras.
        self._ours: dict[str, type] = {}
        self._masked = masked
        if masked:
            self._ours |= MASKED_AS_IN_KERAS2
            if not rnn_hands_mask_on():
                self._ours |= RECURRENT_AS_IN_KERAS2

    def rewrite(self, config: Any) -> Any:
        """Rewrites any part of a configuration."""
        if isinstance(config, list):
            return [self.rewrite(part) for part in config]
        if not isinstance(config, dict):
            return config
        class_name = config.get("class_name")
        inner: Any = config.get("config")
        if class_name in ("Policy", "PolicyV1"):
            return inner["name"]  # Of mixed precision.
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
        if trouble := self._trouble(layer, registered):
            raise ValueError(f"The layer {config['name']} ({name}) {trouble}.")
        if name == "InputLayer":
            return layer
        dropped = _DROPPED | _DROPPED_OF.get(name[:-2], set())
        config = {key: value for key, value in config.items() if key not in dropped}
        if name == "LeakyReLU" and "alpha" in config:
            config["negative_slope"] = config.pop("alpha")
        if name in ("GRU", "GRUCell"):
            config.setdefault("reset_after", False)  # Early files do not say it.
        if config.get("groups") == 1:
            del config["groups"]  # Not all convolutions have them.
        axis = config.get("axis")
        if isinstance(axis, list) and len(axis) == 1:
            config["axis"] = axis[0]
        if name in _OPERATION:
            kept = {key: config[key] for key in ("name", "dtype", "function")}
            return {**layer, **_ours("TensorFlowOperation"), "config": kept}
        if name in self._ours:
            return {**layer, **_ours(name), "config": config}
        if hasattr(keras.layers, name):
            layer = {**layer, "module": "keras.layers", "registered_name": None}
        return {**layer, "config": config}

    def _trouble(self, layer: dict[str, Any], registered: str) -> str | None:
        """Why Keras 3 would not do what a layer did, and what to do."""
        name, config = layer["class_name"], layer["config"]
        if name in _REFUSED:
            return _REFUSED[name]
        if name in _OPERATION:
            if config["function"] in OPERATIONS:
                return None
            return (
                f"is the operation `tf.{config['function']}`, which is not loaded: put "
                "a layer in its place, and save the model again"
            )
        if name not in (*vars(keras.layers), "Functional", "Model"):
            return (
                "is of a class that Keras 3 does not have: pass one that does the "
                f"same, as custom_objects={{{registered!r}: ...}}"
            )
        if self._masked and name == "MultiHeadAttention":
            return (
                "stands beside masks, which that of Keras 3 takes off its inputs: put "
                "`Attention` in its place, or build the model in Keras 3"
            )
        if config.get("time_major"):
            return "has `time_major=True`, which Keras 3 does not have"
        if config.get("num_constants"):
            return "takes `constants`, which Keras 3 does not have"
        if name == "InputLayer" and (config.get("ragged") or config.get("sparse")):
            return "takes ragged or sparse tensors, which are not loaded"
        return None

    def _rewrite_calls(self, model: dict[str, Any]) -> None:
        """Rewrites how the layers of a Functional model are called."""
        layers = {layer["name"]: layer for layer in model["layers"]}

        def is_call(value: Any) -> bool:
            return bool(value) and isinstance(value[0], str) and value[0] in layers

        def with_tensors(value: Any) -> Any:
            """The arguments of a call, with tensors as Keras 3 writes them."""
            if isinstance(value, dict):
                return {key: with_tensors(part) for key, part in value.items()}
            if not isinstance(value, list):
                return value
            if value[:1] == ["_CONSTANT_VALUE"]:
                return value[2]
            if not is_call(value):
                return [with_tensors(part) for part in value]
            name, node, index = value[:3]
            # Keras 3 does not count the call by which a model was made.
            return _tensor(name, node - ("layers" in layers[name]["config"]), index)

        def end(value: Any) -> Any:
            """An input or output of the model, or a structure of them."""
            if isinstance(value, dict):
                return {key: end(part) for key, part in value.items()}
            if not is_call(value):
                return [end(part) for part in value]
            name, node, index = value
            # Here it does, of all but Sequential ones.
            return [name, node - (layers[name]["class_name"] == "Sequential"), index]

        for key in ("input_layers", "output_layers"):
            ends = end(model[key])
            model[key] = ends[0] if isinstance(ends, list) and len(ends) == 1 else ends
        for name, layer in layers.items():
            calls = [_arguments(layer, node) for node in layer["inbound_nodes"]]
            calls = layer["inbound_nodes"] = with_tensors(calls)
            if "layers" not in layer["config"]:
                # The calls say it, of all the arguments.
                layer.pop("build_config", None)
            for index, call in enumerate(calls):
                if self._masked and "initial_state" in call["kwargs"]:
                    mask = {**_ours("MaskOf"), "name": f"{name}_mask_{index}"}
                    mask["config"] = {"name": mask["name"]}
                    mask["inbound_nodes"] = [{"args": call["args"], "kwargs": {}}]
                    model["layers"].insert(model["layers"].index(layer), mask)
                    call["kwargs"].setdefault("mask", _tensor(mask["name"], 0, 0))


def _with_input(model: dict[str, Any]) -> dict[str, Any]:
    """A Sequential model with its input layer, which early files do not name."""
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
    """The arguments of a call, which Keras 2 wrote after its first tensor."""
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
        # Keras 2 kept the states among the sequences.
        kwargs["initial_state"] = node[1:]
        node = node[0]
    return {"args": [node], "kwargs": kwargs}


def _ours(class_name: str) -> dict[str, Any]:
    """What Keras finds a class of this package by."""
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
