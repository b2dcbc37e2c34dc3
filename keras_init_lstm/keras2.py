"""Models from files that Keras 2 wrote."""

import json
import pathlib
import shutil
import tempfile
import zipfile
from typing import Any

import keras


def load_keras2_model(path: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """Loads a recurrent model from a `.h5` or `.keras` file that Keras 2 wrote.

    `keras.models.load_model()` refuses each of them, for arguments that Keras 3 has
    dropped. This loads a copy of the file without them, and needs no `tf_keras`.

    Args:
        path: The file, which is left as it is.
        **kwargs: Those of `keras.models.load_model()`, such as `custom_objects`.

    Returns:
        A model of Keras 3 that is not compiled.

    Raises:
        ValueError: If `path` ends in neither `.h5` nor `.keras`, or if a layer has
            `time_major=True`, which Keras 3 cannot do, or if Keras refuses the rest.

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
    if path.suffix not in (".h5", ".keras"):
        raise ValueError(
            "Argument `path` must be the path of a .h5 or .keras file. "
            f"Received: path={path}"
        )
    with tempfile.TemporaryDirectory() as folder:
        copied = pathlib.Path(folder) / path.name
        if path.suffix == ".h5":
            # Keras reads such files with it, and installs it, but only where needed.
            import h5py  # type: ignore[import-untyped]

            shutil.copy(path, copied)
            with h5py.File(copied, "r+") as file:
                config = json.loads(file.attrs["model_config"])
                file.attrs["model_config"] = json.dumps(_for_keras3(config))
        else:
            with zipfile.ZipFile(path) as old, zipfile.ZipFile(copied, "w") as new:
                for name in old.namelist():
                    data = old.read(name)
                    if name == "config.json":
                        data = json.dumps(_for_keras3(json.loads(data))).encode()
                    new.writestr(name, data)
        return keras.models.load_model(copied, compile=False, **kwargs)


def _for_keras3(config: Any) -> Any:
    """What Keras 2 wrote of a model, as Keras 3 reads it."""
    if isinstance(config, list):
        return [_for_keras3(part) for part in config]
    if not isinstance(config, dict):
        return config
    if config.get("time_major"):
        raise ValueError(
            f"The layer {config.get('name')} has `time_major=True`, which Keras 3 "
            "does not have."
        )
    config = {k: _for_keras3(v) for k, v in config.items() if k != "time_major"}
    if config.get("class_name") not in (None, "InputLayer"):
        # The input layer says the same.
        config["config"].pop("batch_input_shape", None)
    if str(config.get("module")).startswith("tf_keras."):
        config["module"] = "keras.src.models.functional"  # Where Keras 3 has it.
    layers = config.get("layers") or []
    sequential = {
        each["config"]["name"] for each in layers if each["class_name"] == "Sequential"
    }
    for layer in layers:
        nodes = layer.get("inbound_nodes", [])
        for node in nodes:
            # Keras 3 does not count the call by which a Sequential model was made.
            for call in node:
                call[1] -= call[0] in sequential
        if layer["class_name"] in ("Bidirectional", "GRU", "LSTM", "RNN", "SimpleRNN"):
            nodes[:] = [_with_keyword(node) for node in nodes]
            shape = layer.get("build_config", {}).get("input_shape", [None])
            if isinstance(shape[0], list):
                # That of the sequences stands before those of the states.
                layer["build_config"]["input_shape"] = shape[0]
    for end in config.get("output_layers", ()):
        if isinstance(end, list):
            end[1] -= end[0] in sequential
    return config


def _with_keyword(node: Any) -> Any:
    """A call of a recurrent layer, whose states Keras 2 kept among the sequences."""
    if len(node) == 1:
        return node
    tensors = [
        {
            "class_name": "__keras_tensor__",
            "config": {"shape": [], "dtype": "float32", "keras_history": call[:3]},
        }
        for call in node
    ]
    return {"args": tensors[:1], "kwargs": {"initial_state": tensors[1:]}}
