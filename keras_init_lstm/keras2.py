"""Models from files that Keras 2 wrote."""

import json
import pathlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from typing import Any

import keras

from keras_init_lstm.keras2_layers import OPERATIONS, hard_sigmoid_of_keras2

# Layers that may be called with initial states.
_RECURRENT = {"Bidirectional", "ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"}
_RECURRENT |= {"GRU", "LSTM", "RNN", "SimpleRNN"}
_OPERATIONS = ("SlicingOpLambda", "TFOpLambda")
# What Keras 3 has not, or has otherwise.
_REFUSED = {
    "CuDNNGRU": "build the model with GRU(reset_after=True) in its place, "
    "`load_weights()` of this file into it, and save it",
    "CuDNNLSTM": "build the model with LSTM in its place, `load_weights()` of this "
    "file into it, and save it",
    "Lambda": "it holds code, which is not loaded: put a layer of your own in its "
    "place, and save the model again",
}


def load_keras2_model(path: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """Loads a recurrent model from a `.h5` or `.keras` file that Keras 2 wrote.

    `keras.models.load_model()` refuses most of them, for arguments that Keras 3 has
    dropped, and gives some another meaning. This loads a copy of the file that says
    the same to Keras 3, and needs no `tf_keras`. What is loaded predicts what it did
    in Keras 2; what would not is refused.

    Args:
        path: The file, which is left as it is.
        **kwargs: Those of `keras.models.load_model()`, such as `custom_objects`.

    Returns:
        A model of Keras 3 that is not compiled. For what Keras 3 has not, arithmetic
        on tensors, masks beside an initial state and the `hard_sigmoid` of Keras 2, it
        has layers and functions of this package: import it before you load a file of
        the model again.

    Raises:
        ValueError: If the file was not written by Keras 2, holds weights alone, or is
            of another format; if a layer is of a class that Keras 3 does not have, or
            holds code, as `Lambda` does, or an operation on tensors that is not known
            here; if it has `time_major=True` or constants; or if Keras refuses the
            rest. The message names the layer, and what to do.

    Example:
    >>> model = keras_init_lstm.load_keras2_model("old.h5")  # doctest: +SKIP
    >>> learning = keras_init_lstm.with_initial_state(
    ...     model, "trainable"
    ... )  # doctest: +SKIP
    """
    if kwargs.pop("compile", False):
        raise ValueError(
            "Argument `compile` must be False: an optimizer of Keras 2 is not loaded. "
            "Compile the model that is returned. Received: compile=True"
        )
    path = pathlib.Path(path)
    custom_objects = kwargs.pop("custom_objects", None) or {}
    order = _OrderOfTheFile()
    with tempfile.TemporaryDirectory() as folder:
        copied = _rewritten(path, pathlib.Path(folder), custom_objects)
        try:
            return keras.models.load_model(
                copied,
                compile=False,
                custom_objects={**order.custom_objects, **custom_objects},
                **kwargs,
            )
        except Exception as error:
            raise ValueError(
                f"Keras {keras.__version__} does not load what Keras 2 wrote to "
                f"{path.name}: {str(error).split('Exception encountered: ')[-1]}"
            ) from error
        finally:
            order.restore()


class _OrderOfTheFile:
    """Keeps the layers of Functional models in the order of their file for a while.

    Keras finds the weights of a layer by its place in that order. Left to itself,
    Keras 3, which counts masks among the nodes, may have another one, and would give
    layers of the same shape each other's weights.
    """

    def __init__(self) -> None:
        self._natural: list[tuple[dict[str, Any], dict[str, Any]]] = []
        order = self

        class Functional:
            @classmethod
            def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
                names = [layer["name"] for layer in config["layers"]]
                model = keras.Model.from_config(config, custom_objects)
                order._sort(model, names)
                return model

        self.custom_objects = {"Functional": Functional, "Model": Functional}

    def _sort(self, model: keras.Model, names: list[str]) -> None:
        # Keras has no public way to it. The lists themselves are left as they are:
        # TensorFlow writes no checkpoint of a list that was changed.
        natural = {name: vars(model)[name] for name in ("_operations", "_layers")}
        self._natural.append((vars(model), natural))
        for name, layers in natural.items():
            vars(model)[name] = sorted(
                layers,
                key=lambda each: names.index(each.name) if each.name in names else -1,
            )

    def restore(self) -> None:
        for attributes, natural in self._natural:
            attributes.update(natural)


def _rewritten(
    path: pathlib.Path, folder: pathlib.Path, custom_objects: dict[str, Any]
) -> pathlib.Path:
    """Writes a copy of the file that Keras 3 reads, and returns its path."""

    def rewrite(text: str | bytes, version: Any) -> str:
        version = version.decode() if isinstance(version, bytes) else version
        if not str(version).startswith("2."):
            raise refused(
                f"a file of Keras {version}, which `keras.models.load_model()` loads"
            )
        config = json.loads(text)
        config.pop("compile_config", None)
        for layer in _layers(config):
            _check(layer, custom_objects)
        text = json.dumps(config)
        # A class of the user's own may make masks as well.
        masks = re.search(r'"mask_zero": true|"mask": \[|"Masking"|>', text)
        return json.dumps(_for_keras3(config, bool(masks or custom_objects)))

    def refused(received: str) -> ValueError:
        return ValueError(
            "Argument `path` must be the path of a .h5 or .keras file of a whole model "
            f"of Keras 2. Received: path={path}, {received}"
        )

    if path.is_dir():
        raise refused(
            "a folder. If it is a SavedModel, load it with `tf_keras`, and save it as "
            ".h5; `keras.layers.TFSMLayer` calls it as it is"
        )
    if not path.exists():
        raise refused("which does not exist")
    if zipfile.is_zipfile(path):
        copied = folder / "model.keras"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(copied, "w") as new:
            if not {"config.json", "metadata.json"} <= set(old.namelist()):
                raise refused("an archive without a model")
            version = json.loads(old.read("metadata.json"))["keras_version"]
            for name in old.namelist():
                data: Any = old.read(name)
                if name == "config.json":
                    data = rewrite(data, version)
                new.writestr(name, data)
        return copied
    with path.open("rb") as opened:
        if opened.read(8) != b"\x89HDF\r\n\x1a\n":
            raise refused("which is neither")
    # Keras reads such files with it, and installs it, but only where needed.
    import h5py  # type: ignore[import-untyped]

    copied = folder / "model.h5"
    shutil.copy(path, copied)
    copied.chmod(0o600)
    with h5py.File(copied, "r+") as file:
        if "model_config" not in file.attrs:
            raise refused(
                "which holds weights alone. Build the model in Keras 3, and call its "
                "`load_weights()`"
            )
        version = file.attrs.get("keras_version")
        file.attrs["model_config"] = rewrite(file.attrs["model_config"], version)
    return copied


def _layers(config: Any) -> Iterator[dict[str, Any]]:
    """Each layer, cell and model that a configuration speaks of."""
    if isinstance(config, dict):
        inner = config.get("config")
        if "class_name" in config and isinstance(inner, dict) and "name" in inner:
            yield config
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from _layers(part)


def _check(layer: dict[str, Any], custom_objects: dict[str, Any]) -> None:
    """Raises a `ValueError` where Keras 3 would not compute what Keras 2 did."""
    name, config = layer["class_name"], layer["config"]
    registered = layer.get("registered_name") or name
    if name in custom_objects or keras.saving.get_registered_object(
        registered, custom_objects
    ):
        return
    if name in _REFUSED:
        trouble = f"is not loaded: {_REFUSED[name]}"
    elif name in _OPERATIONS and config["function"] not in OPERATIONS:
        trouble = (
            f"is the operation `tf.{config['function']}`, which is not loaded: put a "
            "layer of Keras in its place, and save the model again"
        )
    elif not (
        name in (*_OPERATIONS, "Functional")
        or hasattr(keras.layers, name)
        or hasattr(keras, name)
    ):
        trouble = (
            "is of a class that Keras 3 does not have: pass one that computes the "
            f"same, as custom_objects={{{registered!r}: ...}}"
        )
    elif config.get("time_major"):
        trouble = "has `time_major=True`, which Keras 3 does not have"
    elif config.get("num_constants"):
        trouble = "takes `constants`, which Keras 3 does not have"
    elif config.get("ragged") or config.get("sparse"):
        trouble = "takes ragged or sparse tensors, which are not loaded"
    else:
        return
    raise ValueError(f"The layer {config['name']} ({name}) {trouble}.")


def _for_keras3(config: Any, masks: bool) -> Any:
    """What Keras 2 wrote of a model, as Keras 3 reads it."""
    if isinstance(config, list):
        return [_for_keras3(part, masks) for part in config]
    if not isinstance(config, dict):
        return config
    class_name = config.get("class_name")
    if class_name in ("Policy", "PolicyV1"):
        return config["config"]["name"]  # Of mixed precision.
    if class_name == "Sequential":
        config = _with_input(config)
    config = {
        key: keras.saving.serialize_keras_object(hard_sigmoid_of_keras2)
        if value == "hard_sigmoid" and key.endswith("activation")
        else _for_keras3(value, masks)
        for key, value in config.items()
        if key != "time_major"
    }
    if isinstance(config.get("config"), dict) and class_name != "InputLayer":
        # The input layer says the same.
        config["config"].pop("batch_input_shape", None)
    if "input_layers" in config:
        _rewrite_graph(config, masks)
    return config


def _with_input(model: dict[str, Any]) -> dict[str, Any]:
    """A Sequential model with its input layer, which early files do not name."""
    config = model["config"]
    if isinstance(config, list):
        config = {"name": model.get("name", "sequential"), "layers": config}
    first = config["layers"][0]
    shape = first["config"].get("batch_input_shape")
    if shape and first["class_name"] != "InputLayer":
        name = f"{first['config']['name']}_input"
        inputs = {"name": name, "batch_input_shape": shape, "dtype": "float32"}
        inputs = {**first, "class_name": "InputLayer", "config": inputs}
        config = {**config, "layers": [inputs, *config["layers"]]}
    return {**model, "config": config}


def _rewrite_graph(config: dict[str, Any], masks: bool) -> None:
    """Rewrites how the layers of a Functional model are called."""
    layers = {layer["name"]: layer for layer in config["layers"]}

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
        # Of other models Keras 3 does count it here.
        return [name, node - (layers[name]["class_name"] == "Sequential"), index]

    for key in ("input_layers", "output_layers"):
        ends = end(config[key])
        config[key] = ends[0] if isinstance(ends, list) and len(ends) == 1 else ends
    for name, layer in list(layers.items()):
        calls = [_arguments(layer, node) for node in layer["inbound_nodes"]]
        calls = with_tensors(calls)
        if layer["class_name"] in _OPERATIONS:
            kept = {key: layer["config"][key] for key in ("name", "dtype", "function")}
            layer = _ours("TensorFlowOperation", kept, calls)
            config["layers"][config["layers"].index(layers[name])] = layer
        elif "layers" not in layer["config"]:
            # The calls say it, of all the arguments.
            layer.pop("build_config", None)
        layer["inbound_nodes"] = calls
        for index, call in enumerate(calls):
            if masks and "initial_state" in call["kwargs"]:
                given = {"args": call["args"], "kwargs": {}}
                mask = _ours("MaskOf", {"name": f"{name}_mask_{index}"}, [given])
                config["layers"].append(mask)
                call["kwargs"].setdefault("mask", _tensor(mask["name"], 0, 0))


def _arguments(layer: dict[str, Any], node: Any) -> dict[str, Any]:
    """The arguments of a call, which Keras 2 wrote beside its first tensor."""
    first = node
    while not (isinstance(first, list) and isinstance(first[0], str)):
        first = next(iter(first.values() if isinstance(first, dict) else first))
    kwargs = first[3] if len(first) > 3 else {}
    kwargs = {key: value for key, value in kwargs.items() if value is not None}
    if layer["class_name"] in _OPERATIONS:
        kwargs.pop("name", None)
        return {"args": [], "kwargs": {"first": node, **kwargs}}
    if isinstance(node, list) and len(node) == 1:
        node = node[0]
    elif layer["class_name"] in _RECURRENT:
        # Keras 2 kept the states among the sequences.
        node, *states = node
        kwargs["initial_state"] = states
    return {"args": [node], "kwargs": kwargs}


def _ours(
    class_name: str, config: dict[str, Any], calls: list[dict[str, Any]]
) -> dict[str, Any]:
    """A layer of this package in a configuration."""
    return {
        "module": __package__,
        "class_name": class_name,
        "registered_name": f"{__package__}>{class_name}",
        "config": config,
        "name": config["name"],
        "inbound_nodes": calls,
    }


def _tensor(layer: str, node: int, index: int) -> dict[str, Any]:
    history = [layer, node, index]
    return {
        "class_name": "__keras_tensor__",
        "config": {"shape": [], "dtype": "float32", "keras_history": history},
    }
