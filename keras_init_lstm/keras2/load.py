"""Loads models from files that Keras 2 wrote."""

import json
import pathlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable
from typing import Any

import keras

from keras_init_lstm._keras import LISTS_OF_LAYERS, layer_and_reason
from keras_init_lstm.keras2.config import for_keras3


def load_model(path: str | pathlib.Path, **kwargs: Any) -> keras.Model:
    """Loads a recurrent model from a `.h5` or `.keras` file that Keras 2 wrote.

    `keras.models.load_model()` fails on most of these files, because of arguments that
    Keras 3 has dropped, and misreads some. This function rewrites a copy of the file
    for Keras 3, and does not need `tf_keras`. The model predicts the same as in
    Keras 2. If Keras 3 can't do that, a `ValueError` is raised.

    Args:
        path: Path of the file, which is left unchanged.
        **kwargs: As in `keras.models.load_model()`, such as `custom_objects`.

    Returns:
        A model of Keras 3 that is not compiled. For operations on tensors, such as
        `h * 2.0`, for masks, and for the `hard_sigmoid` of Keras 2, it has layers and a
        function of this package: import the package before you load a saved copy of
        such a model. From Keras 3.16 on, this holds for recurrent layers with masks
        too, because the layers of Keras do not pass a mask to the next layer.

    Raises:
        ValueError: If Keras is older than 3.14; if `compile=True` is passed; if the
            file does not hold a whole model of Keras 2; if a layer is a `Lambda`, a
            layer for cuDNN, an operation on tensors that this function does not know,
            or of a class that Keras 3 does not have; if a layer takes constants, or
            ragged or sparse tensors, or has `time_major=True`; if Keras 3 treats the
            masks of a layer differently; or if Keras can't load the rewritten file. The
            message names the layer and says what to do.

    Example:
    >>> model = keras_init_lstm.keras2.load_model("old.h5")  # doctest: +SKIP
    >>> learning = keras_init_lstm.with_initial_state(
    ...     model, "trainable"
    ... )  # doctest: +SKIP
    """
    if kwargs.pop("compile", False):
        raise ValueError(
            "Argument `compile` must be False: an optimizer of Keras 2 is not loaded. "
            "Compile the model that is returned. Received: compile=True"
        )
    if tuple(map(int, keras.__version__.split(".")[:2])) < (3, 14):
        raise ValueError(
            "`keras2.load_model()` needs Keras 3.14 or later: older versions treat "
            f"masks differently. Received: Keras {keras.__version__}"
        )
    path = pathlib.Path(path)
    custom_objects = kwargs.pop("custom_objects", None) or {}
    order = _OrderOfTheFile()
    with tempfile.TemporaryDirectory() as folder:
        copied = _copy(
            path, pathlib.Path(folder), lambda text: for_keras3(text, custom_objects)
        )
        try:
            return keras.models.load_model(
                copied,
                compile=False,
                custom_objects={**order.custom_objects, **custom_objects},
                **kwargs,
            )
        except Exception as error:
            name, reason = layer_and_reason(error)
            layer = f"the layer {name} of " if name else ""
            raise ValueError(
                f"Keras {keras.__version__} can't load {layer}the file {path}. Load it "
                "with the package tf_keras, replace what Keras 3 does not have, and "
                f"save it again: {reason}"
            ) from error
        finally:
            order.restore()


def _copy(
    path: pathlib.Path, folder: pathlib.Path, rewrite: Callable[[str | bytes], str]
) -> pathlib.Path:
    """Copies the file, rewrites the configuration of the copy, and returns its path."""

    def invalid(received: str) -> ValueError:
        return ValueError(
            "Argument `path` must be the path of a .h5 or .keras file with a whole "
            f"model of Keras 2. Received: path={path}, {received}"
        )

    def check_version(version: Any) -> None:
        version = version.decode() if isinstance(version, bytes) else str(version)
        if not version.startswith("2."):
            raise invalid(
                f"a file of Keras {version}. `keras.models.load_model()` loads a file "
                "of Keras 3"
            )

    if path.is_dir():
        raise invalid(
            "a folder. If it is a SavedModel, load it with the package tf_keras, and "
            "save it as .h5"
        )
    if not path.exists():
        raise invalid("which does not exist")
    # Test the content: Keras 2 also wrote HDF5 to files named .keras, or anything else.
    if zipfile.is_zipfile(path):
        copied = folder / "model.keras"
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(copied, "w") as new:
            if not {"config.json", "metadata.json"} <= set(old.namelist()):
                raise invalid("an archive without a model")
            check_version(json.loads(old.read("metadata.json"))["keras_version"])
            for name in old.namelist():
                data = old.read(name)
                new.writestr(name, rewrite(data) if name == "config.json" else data)
        return copied
    with path.open("rb") as opened:
        if opened.read(8) != b"\x89HDF\r\n\x1a\n":
            raise invalid("which is of another format")
    # Keras depends on h5py, and imports it only for such files.
    import h5py  # type: ignore[import-untyped]

    copied = folder / "model.h5"
    shutil.copyfile(path, copied)
    with h5py.File(copied, "r+") as file:
        if "model_config" not in file.attrs:
            raise invalid(
                "which holds weights alone, or is not a file of Keras. Build the model "
                "in Keras 3, and call its `load_weights()`"
            )
        check_version(file.attrs.get("keras_version"))
        file.attrs["model_config"] = rewrite(file.attrs["model_config"])
    return copied


class _OrderOfTheFile:
    """Keeps the layers of Functional models in the order of the file during loading.

    Keras finds the weights of a layer by its position. Keras 3 counts masks as nodes,
    may sort the layers differently, and would then swap the weights of layers of the
    same shape.
    """

    def __init__(self) -> None:
        self._natural: list[tuple[dict[str, Any], dict[str, Any]]] = []
        sort = self._sort

        class Functional:
            @classmethod
            def from_config(cls, config: Any, custom_objects: Any = None) -> Any:
                names = [layer["name"] for layer in config["layers"]]
                model = keras.Model.from_config(config, custom_objects)
                sort(model, names)
                return model

        self.custom_objects = {"Functional": Functional, "Model": Functional}

    def _sort(self, model: keras.Model, names: list[str]) -> None:
        # Replace the lists instead of changing them: TensorFlow can't save a checkpoint
        # of a changed list.
        natural = {name: vars(model)[name] for name in LISTS_OF_LAYERS}
        self._natural.append((vars(model), natural))
        for name, layers in natural.items():
            vars(model)[name] = sorted(
                layers,
                key=lambda x: names.index(x.name) if x.name in names else -1,
            )

    def restore(self) -> None:
        """Restores the natural order of the layers."""
        for attributes, natural in self._natural:
            attributes.update(natural)
