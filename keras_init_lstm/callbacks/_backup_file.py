"""The content of a backup of a training run, and its file."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_init_lstm._checks import described
from keras_init_lstm._files import as_written, write_whole
from keras_init_lstm._keras import epoch_of_data, layers_within, set_epoch_of_data
from keras_init_lstm.backend import backend
from keras_init_lstm.layers._stream import CarriedState

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclasses.dataclass
class Backup:
    """The content of a backup: the state of training, and where it continues.

    Args:
        epoch: The epoch in which training continues.
        batch: The number of batches of that epoch that were trained on.
        read: The number of batches that were read from the iterator of the batches,
            maybe since an earlier epoch.
        random: The random state in which that iterator was created.
        backend_random: The random state of the backend at the backup.
        logs: The logs of the last batch.
        variables: The values of the variables.
        metrics: The values of the variables of the metrics.
    """

    epoch: int
    batch: int
    read: int
    random: Any
    backend_random: Any
    logs: Any
    variables: list[np.ndarray]
    metrics: list[np.ndarray]

    @classmethod
    def of(cls, model: keras.Model, **place: Any) -> Self:
        """Returns a backup of a model and of the backend's random state.

        Args:
            model: The model that is trained.
            **place: The other attributes, which tell where training continues.
        """
        return cls(
            backend_random=backend.random_state(),
            variables=list(map(as_written, _trained_variables(model))),
            metrics=list(map(as_written, model.metrics_variables)),
            **place,
        )

    def write(self, path: pathlib.Path) -> None:
        """Writes the backup to a file, completely or not at all."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        lists = {name: fields.pop(name) for name in ("variables", "metrics")}
        arrays = {
            f"{name}/{index}": array
            for name, values in lists.items()
            for index, array in enumerate(values)
        }
        text = json.dumps(fields, default=lambda value: np.asarray(value).tolist())
        write_whole(path, text=np.array(text), **arrays)

    @classmethod
    def read_from(cls, path: pathlib.Path) -> Self:
        """Reads a backup that `write()` wrote."""
        with np.load(path) as file:
            fields = json.loads(file["text"].item())
            for name in ("variables", "metrics"):
                count = sum(key.startswith(f"{name}/") for key in file)
                fields[name] = [file[f"{name}/{index}"] for index in range(count)]
        return cls(**fields)

    def restore_variables(
        self, model: keras.Model, folder: str | os.PathLike[str]
    ) -> None:
        """Restores the variables that training changes, but not metrics.

        Args:
            model: The model that is trained.
            folder: The folder of the backup, for the error.

        Raises:
            ValueError: If the backup is of another model.
        """
        _assign(_trained_variables(model), self.variables, folder)

    def restore(self, model: keras.Model, folder: str | os.PathLike[str]) -> None:
        """Restores the variables, the metrics and the random state of the backend.

        Args:
            model: As in `restore_variables()`.
            folder: As in `restore_variables()`.

        Raises:
            ValueError: As in `restore_variables()`.
        """
        self.restore_variables(model, folder)
        _assign(model.metrics_variables, self.metrics, folder)
        backend.set_random_state(self.backend_random)


def _assign(
    variables: Sequence[keras.Variable],
    arrays: Sequence[np.ndarray],
    folder: str | os.PathLike[str],
) -> None:
    shapes = [tuple(variable.shape) for variable in variables]
    if shapes != [array.shape for array in arrays]:
        raise ValueError(
            f"The backup in {folder} is of another model, or of a model that was "
            f"compiled with other arguments. Expected: {described(variables)}. "
            f"Received: {described(arrays)}"
        )
    for variable, array in zip(variables, arrays, strict=True):
        variable.assign(array)


def _trained_variables(model: keras.Model) -> list[keras.Variable]:
    """Returns all variables that training changes, but not metrics."""
    optimizer = model.optimizer
    variables = [*model.variables, *(optimizer.variables if optimizer else [])]
    # On some backends, the variables of a model leave out the states of its stateful
    # layers.
    for layer in layers_within(model):
        for state in keras.tree.flatten(getattr(layer, "states", None)):
            if isinstance(state, CarriedState):
                variables += state.variables
            elif isinstance(state, keras.Variable):
                variables.append(state)
    return list({id(variable): variable for variable in variables}.values())


def random_state(data: Any) -> dict[str, Any]:
    """Returns the states of the generators that may determine the order of the data."""
    return {
        "epoch_of_data": epoch_of_data(data),
        "python": random.getstate(),
        # Keras draws from NumPy's global generator.
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "backend": backend.random_state(),
    }


def set_random_state(state: dict[str, Any], data: Any) -> None:
    """Restores the states that `random_state()` returned."""
    if state["epoch_of_data"] is not None:
        set_epoch_of_data(data, state["epoch_of_data"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    backend.set_random_state(state["backend"])
