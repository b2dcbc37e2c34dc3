"""Many streams, each with its own state, which one model reads in batches."""

from __future__ import annotations

import collections
import json
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import keras
import numpy as np

from keras_init_lstm._checks import check_positive_integer, check_shape, described
from keras_init_lstm._files import writable_dtype, write_whole
from keras_init_lstm.backend import backend
from keras_init_lstm.streams.step_model import make_step_model

if TYPE_CHECKING:
    from typing_extensions import Self

Id: TypeAlias = int | str

# Batch sizes are rounded up to a multiple of this number.
_BATCH_MULTIPLE = 16


class StreamStore:
    """The states of many streams by their IDs, with the model that reads them.

    A stateful layer carries one state for each row of a batch. A server has streams
    that come and go, and new data for a few of them at a time. A store knows each
    stream by its ID, and a batch may have any IDs in any order. A call advances each of
    these streams by one chunk. The outputs of a stream do not depend on the other
    streams. Several threads may call a store: the calls run one after another.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package, or an `LSTM`, `GRU`, `SimpleRNN` or `RNN` of Keras, stateful or
            not, in nested models too. It is copied, with its weights.
        max_streams: Positive integer, the largest number of streams: beyond it, the
            least recently used streams are forgotten. Defaults to `None`, no limit.

    Call arguments:
        ids: List of different integers or strings, one for each row. A new ID starts
            from the initial states that the layers own.
        x: The inputs of the model, with one row for each ID: an array, or a list of
            arrays for a model with several inputs.
        context: The last inputs of the model, if they are the context of `Conditional`
            states; `x` then has only the other inputs. It is used for new and reset
            streams. Defaults to `None`.

    Returns:
        The outputs of the model, as arrays.

    Raises:
        ValueError: If `model` is not as above, or can't be a stream (see
            `with_states_as_inputs()`); or if `max_streams` is not a positive integer.
            At a call, if `ids` are not different integers or strings, or are more than
            `max_streams`; or if `x` and `context` do not fit the inputs of the model,
            with one row for each ID. All streams are then unchanged.

    Example:
    >>> lstm = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> model = keras.Sequential([keras.Input((None, 3)), lstm])
    >>> store = keras_init_lstm.streams.StreamStore(model, max_streams=1000)
    >>> outputs = store(["pump 1", "pump 7"], np.ones((2, 1, 3)))
    >>> outputs = store(["pump 7"], np.ones((1, 5, 3)))
    >>> outputs.shape, len(store), "pump 1" in store
    ((1, 4), 2, True)
    >>> bool(np.allclose(outputs, model(np.ones((1, 6, 3))), atol=1e-6))
    True
    """

    def __init__(self, model: keras.Model, max_streams: int | None = None) -> None:
        check_positive_integer(max_streams, "max_streams", or_none=True)
        self._step_model = make_step_model(model, has_reset_mask=True)
        inputs = self._step_model.model.inputs
        count = len(self._step_model.copied.inputs)
        # The reset mask is the input between them.
        self._given, self._states = inputs[:count], inputs[count + 1 :]
        self.max_streams = max_streams
        self._lock = threading.RLock()
        # The row of each ID in the tables, in the order of last use.
        self._rows: collections.OrderedDict[Id, int] = collections.OrderedDict()
        self._free: list[int] = []
        self._tables = [
            np.zeros((0, *state.shape[1:]), writable_dtype(state))
            for state in self._states
        ]
        self._fresh = np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._rows

    def __iter__(self) -> Iterator[Id]:
        """Iterates over the IDs, from the least recently used one."""
        with self._lock:
            return iter(list(self._rows))

    def __call__(self, ids: Iterable[Id], x: Any, context: Any = None) -> Any:
        ids = self._checked(ids)
        if self.max_streams is not None and len(ids) > self.max_streams:
            raise ValueError(
                f"Argument `ids` must have at most max_streams={self.max_streams} "
                f"entries. Received: {len(ids)} IDs"
            )
        given = self._inputs(ids, x, context)
        with self._lock:
            rows = np.array([self._rows.get(stream_id, -1) for stream_id in ids])
            is_known = rows >= 0
            reset_mask = ~is_known
            reset_mask[is_known] = self._fresh[rows[is_known]]
            states = [_rows_of_table(table, rows) for table in self._tables]
            results = self._run([*given, reset_mask, *states])
            split = len(results) - len(states)
            self._keep(ids, results[split:])
        return self._step_model.outputs_of_model(results)

    def reset(self, ids: Iterable[Id]) -> None:
        """Resets streams to their initial states.

        Args:
            ids: The IDs of the streams.

        Raises:
            ValueError: If an ID is unknown or repeated. All streams are then unchanged.
        """
        with self._lock:
            self._fresh[self._rows_of(ids)] = True

    def forget(self, ids: Iterable[Id]) -> None:
        """Removes streams. A later call with such an ID starts a new stream.

        Args:
            ids: The IDs of the streams.

        Raises:
            ValueError: If an ID is unknown or repeated. All streams are then unchanged.
        """
        with self._lock:
            ids = self._checked(ids)
            self._free += self._rows_of(ids)
            for stream_id in ids:
                del self._rows[stream_id]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves all streams to an `.npz` file, completely or not at all.

        The file does not hold the weights of the model.

        Args:
            path: The path of the file. An existing file is replaced.
        """
        with self._lock:
            rows = list(self._rows.values())
            arrays: dict[str, Any] = {
                state.name: table[rows]
                for state, table in zip(self._states, self._tables, strict=True)
            }
            arrays |= {"ids": json.dumps(list(self._rows)), "fresh": self._fresh[rows]}
        write_whole(Path(path), **arrays)

    def load(self, path: str | os.PathLike[str]) -> Self:
        """Replaces all streams by the streams in a file that `save()` wrote.

        Args:
            path: The path of the file.

        Returns:
            The store.

        Raises:
            ValueError: If the file is broken, has the streams of a model with other
                states, or has more than `max_streams` streams. All streams are then
                unchanged.
        """
        try:
            with np.load(path) as file:
                arrays = dict(file)
            ids = json.loads(str(arrays.get("ids", "[]")))
            ids = self._checked(ids) if ids else []
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                "Argument `path` must be a file that `save()` wrote. "
                f"Received: {path}, which can't be read: {error}"
            ) from error
        count = arrays.get("fresh", np.zeros(0)).shape
        shapes = {state.name: (*count, *state.shape[1:]) for state in self._states}
        shapes |= {"ids": (), "fresh": count}
        found = {name: array.shape for name, array in arrays.items()}
        if found != shapes:
            raise ValueError(
                "Argument `path` must be a file with streams of a model with the "
                f"states {shapes}. Received: a file with {found}"
            )
        if (len(ids),) != count:
            raise ValueError(
                "Argument `path` must be a file that `save()` wrote. "
                f"Received: a file with {len(ids)} IDs for {count[0]} streams"
            )
        if self.max_streams is not None and len(ids) > self.max_streams:
            raise ValueError(
                "Argument `path` must be a file with at most "
                f"max_streams={self.max_streams} streams. "
                f"Received: a file with {len(ids)} streams"
            )
        with self._lock:
            self._rows = collections.OrderedDict(zip(ids, range(len(ids)), strict=True))
            self._free = []
            self._fresh = arrays["fresh"]
            self._tables = [
                arrays[state.name].astype(table.dtype)
                for state, table in zip(self._states, self._tables, strict=True)
            ]
        return self

    def _checked(self, ids: Any) -> list[Id]:
        is_list = isinstance(ids, Iterable) and not isinstance(ids, (str, bytes))
        # JSON cannot serialise NumPy scalars.
        checked = [
            value.item() if isinstance(value, (np.integer, np.str_)) else value
            for value in (ids if is_list else ())
        ]
        are_valid = all(type(value) in (int, str) for value in checked)
        if not checked or not are_valid or len(set(checked)) != len(checked):
            raise ValueError(
                "Argument `ids` must be a list of integers or strings, not empty, and "
                f"without duplicates. Received: ids={described(ids)}"
            )
        return checked

    def _rows_of(self, ids: Any) -> list[int]:
        ids = self._checked(ids)
        unknown = [stream_id for stream_id in ids if stream_id not in self._rows]
        if unknown:
            raise ValueError(
                "Argument `ids` must be IDs of existing streams. "
                f"Received: {unknown}, which are unknown"
            )
        return [self._rows[stream_id] for stream_id in ids]

    def _inputs(self, ids: list[Id], x: Any, context: Any) -> list[np.ndarray]:
        expected = self._given
        several = len(expected) > 1 and (context is None or len(expected) > 2)
        leaves = keras.tree.flatten(x) if several else [x]
        if context is not None:
            leaves += keras.tree.flatten(context)
        if len(leaves) != len(expected):
            raise ValueError(
                "Argument `x`, with `context`, must have one array for each of the "
                f"{len(expected)} inputs of the model. Received: {len(leaves)} arrays"
            )
        arrays = [keras.ops.convert_to_numpy(leaf) for leaf in leaves]
        for array, tensor in zip(arrays, expected, strict=True):
            check_shape(
                array,
                (len(ids), *tensor.shape[1:]),
                f"Argument `x` must have one row for each of the {len(ids)} IDs, for "
                f"the input {tensor.name} of shape {tensor.shape}.",
            )
        return arrays

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        count = len(inputs[0])
        # A processor computes the last rows of a batch with other instructions if they
        # do not fill a vector, and rounds differently. Round the batch size up, because
        # a stream must not depend on the other streams of its batch.
        size = -(-count // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
        if backend.compiles_each_shape:
            size = 1 << (size - 1).bit_length()
        # `np.resize()` repeats the rows.
        inputs = [np.resize(array, (size, *array.shape[1:])) for array in inputs]
        model = self._step_model.model
        outputs = keras.tree.flatten(model.predict_on_batch(inputs))
        return [output[:count] for output in outputs]

    def _keep(self, ids: list[Id], states: list[np.ndarray]) -> None:
        for stream_id in ids:
            if stream_id not in self._rows:
                self._rows[stream_id] = self._free_row()
            self._rows.move_to_end(stream_id)
        rows = [self._rows[stream_id] for stream_id in ids]
        self._fresh[rows] = False
        for table, state in zip(self._tables, states, strict=True):
            table[rows] = state
        while self.max_streams is not None and len(self._rows) > self.max_streams:
            _, row = self._rows.popitem(last=False)
            self._free.append(row)

    def _free_row(self) -> int:
        if not self._free:
            # Double the tables: they are then rarely copied.
            size = len(self._fresh)
            more = max(64, size)
            self._free = list(range(size + more - 1, size - 1, -1))
            self._fresh = np.append(self._fresh, np.zeros(more, bool))
            self._tables = [
                np.concatenate([table, np.zeros((more, *table.shape[1:]), table.dtype)])
                for table in self._tables
            ]
        return self._free.pop()


def _rows_of_table(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Returns rows of a table, with zeros for -1."""
    states = np.zeros((len(rows), *table.shape[1:]), table.dtype)
    is_known = rows >= 0
    states[is_known] = table[rows[is_known]]
    return states
