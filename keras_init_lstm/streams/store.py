"""Many streams at once, each with a state of its own, by one model."""

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
from keras_init_lstm.streams.step_model import make_stepping

if TYPE_CHECKING:
    from typing_extensions import Self

Id: TypeAlias = int | str

_ROWS_AT_ONCE = 16


class StreamStore:
    """The states of many streams that one model reads, a batch of any of them a call.

    A stateful layer carries one state for each row of a batch. A server has streams
    that come and go, and in each moment news of a few: here a stream is known by its
    id, and a batch may be of any ids in any order. To call it is to advance each of
    these streams by a chunk; what each gives does not depend on the others. Several
    threads may do so, one after the other.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package, or an `LSTM`, `GRU`, `SimpleRNN` or `RNN` of Keras, stateful or
            not, in nested models too. It is copied, with its weights.
        max_streams: Positive integer: beyond this number, the least recently used
            streams are forgotten. Defaults to `None`, no limit.

    Call arguments:
        ids: Integers or strings, one for each row, none twice. One that is new starts
            from the initial states that the layers own.
        x: What the model is called with, one row for each id: an array, or a list of
            them for a model of several inputs.
        context: For a model whose last inputs are a context of `Conditional` states:
            these by themselves, after `x`. It is used for streams that begin.
            Defaults to `None`.

    Returns:
        What the model returns, as arrays.

    Raises:
        ValueError: If `model` is not such a model, or can't be a stream (see
            `as_stateful()`); if ids are not different integers or strings, more than
            `max_streams`, or not as many as the rows. The streams are then as before.

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
        self._stepping = make_stepping(model, restarts=True)
        count, inputs = len(self._stepping.copied.inputs), self._stepping.model.inputs
        # Between them is the one for rows that restart.
        self._given, self._states = inputs[:count], inputs[count + 1 :]
        self.max_streams = max_streams
        self._lock = threading.RLock()
        # For each id, in the order of their last use, its row in the tables.
        self._rows: collections.OrderedDict[Id, int] = collections.OrderedDict()
        self._free: list[int] = []
        self._tables = [
            np.zeros((0, state.shape[1]), writable_dtype(state))
            for state in self._states
        ]
        self._fresh = np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, one: object) -> bool:
        return one in self._rows

    def __iter__(self) -> Iterator[Id]:
        """The ids, the least recently used first."""
        with self._lock:
            return iter(list(self._rows))

    def __call__(self, ids: Iterable[Id], x: Any, context: Any = None) -> Any:
        ids = self._checked(ids)
        if self.max_streams is not None and len(ids) > self.max_streams:
            raise ValueError(
                f"Argument `ids` must be at most max_streams={self.max_streams}. "
                f"Received: {len(ids)} ids"
            )
        given = self._inputs(ids, x, context)
        with self._lock:
            rows = np.array([self._rows.get(one, -1) for one in ids])
            known = rows >= 0
            restarts = ~known
            restarts[known] = self._fresh[rows[known]]
            states = [_taken(table, rows) for table in self._tables]
            results = self._run([*given, restarts, *states])
            split = len(results) - len(states)
            self._keep(ids, results[split:])
        return self._stepping.outputs_of_model(results)

    def reset(self, ids: Iterable[Id]) -> None:
        """Resets the streams of these ids to their initial states.

        Raises:
            ValueError: If an id is not known. All streams are then unchanged.
        """
        with self._lock:
            self._fresh[self._rows_of(ids)] = True

    def forget(self, ids: Iterable[Id]) -> None:
        """Drops the streams of these ids.

        Raises:
            ValueError: If an id is not known. All streams are then as before.
        """
        with self._lock:
            ids = self._checked(ids)
            self._free += self._rows_of(ids)
            for one in ids:
                del self._rows[one]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes all streams to an `.npz` file, whole or not at all.

        The weights of the model are not in it.
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

        Raises:
            ValueError: If the file is broken, or has the streams of a model with other
                states, or more than `max_streams` streams. All streams are then
                unchanged.
        """
        try:
            with np.load(path) as file:
                arrays = dict(file)
            ids = json.loads(str(arrays.get("ids", "[]")))
            ids = self._checked(ids) if ids else []
        except (ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                "Argument `path` must be of a file that `save()` wrote. "
                f"Received: {path}, which can't be read: {error}"
            ) from error
        count = arrays.get("fresh", np.zeros(0)).shape
        shapes = {state.name: (*count, state.shape[1]) for state in self._states}
        shapes |= {"ids": (), "fresh": count}
        found = {name: array.shape for name, array in arrays.items()}
        if found != shapes:
            raise ValueError(
                "Argument `path` must be of streams of a model with the states "
                f"{shapes}. Received: a file with {found}"
            )
        if (len(ids),) != count:
            raise ValueError(
                "Argument `path` must be of a file that `save()` wrote. "
                f"Received: a file with {len(ids)} ids for {count[0]} streams"
            )
        if self.max_streams is not None and len(ids) > self.max_streams:
            raise ValueError(
                f"Argument `path` must be of at most max_streams={self.max_streams} "
                f"streams. Received: a file with {len(ids)}"
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
        # JSON cannot serialise the scalars of NumPy.
        listed = [
            one.item() if isinstance(one, (np.integer, np.str_)) else one
            for one in (ids if is_list else ())
        ]
        right = all(type(one) in (int, str) for one in listed)
        if not listed or not right or len(set(listed)) != len(listed):
            raise ValueError(
                "Argument `ids` must be a list of integers or strings, at least one, "
                f"and none twice. Received: ids={described(ids)}"
            )
        return listed

    def _rows_of(self, ids: Any) -> list[int]:
        ids = self._checked(ids)
        unknown = [one for one in ids if one not in self._rows]
        if unknown:
            raise ValueError(
                f"Argument `ids` must be of streams that are there. Received: {unknown}"
            )
        return [self._rows[one] for one in ids]

    def _inputs(self, ids: list[Id], x: Any, context: Any) -> list[np.ndarray]:
        wanted = self._given
        several = len(wanted) > 1 and (context is None or len(wanted) > 2)
        leaves = keras.tree.flatten(x) if several else [x]
        if context is not None:
            leaves += keras.tree.flatten(context)
        if len(leaves) != len(wanted):
            raise ValueError(
                f"Argument `x`, with `context`, must be what the {len(wanted)} inputs "
                f"of the model are given. Received: {len(leaves)} arrays"
            )
        arrays = [keras.ops.convert_to_numpy(leaf) for leaf in leaves]
        for array, tensor in zip(arrays, wanted, strict=True):
            check_shape(
                array,
                (len(ids), *tensor.shape[1:]),
                f"Argument `x` must have one row for each of the {len(ids)} ids: for "
                f"the input {tensor.name} of shape {tensor.shape}.",
            )
        return arrays

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        count = len(inputs[0])
        # The last rows, fewer than a processor takes at once, are computed by other
        # instructions, and rounded otherwise: a stream would depend on its company.
        size = -(-count // _ROWS_AT_ONCE) * _ROWS_AT_ONCE
        if backend.compiles_each_shape:
            size = 1 << (size - 1).bit_length()
        # The first rows stand in it again, as often as it takes.
        inputs = [np.resize(each, (size, *each.shape[1:])) for each in inputs]
        model = self._stepping.model
        outputs = keras.tree.flatten(model.predict_on_batch(inputs))
        return [output[:count] for output in outputs]

    def _keep(self, ids: list[Id], states: list[np.ndarray]) -> None:
        for one in ids:
            if one not in self._rows:
                self._rows[one] = self._free_row()
            self._rows.move_to_end(one)
        rows = [self._rows[one] for one in ids]
        self._fresh[rows] = False
        for table, state in zip(self._tables, states, strict=True):
            table[rows] = state
        while self.max_streams is not None and len(self._rows) > self.max_streams:
            _, row = self._rows.popitem(last=False)
            self._free.append(row)

    def _free_row(self) -> int:
        if not self._free:
            # Twice as many, so that they are seldom copied.
            size = len(self._fresh)
            more = max(64, size)
            self._free = list(range(size + more - 1, size - 1, -1))
            self._fresh = np.append(self._fresh, np.zeros(more, bool))
            self._tables = [
                np.concatenate([table, np.zeros((more, table.shape[1]), table.dtype)])
                for table in self._tables
            ]
        return self._free.pop()


def _taken(table: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Rows of a table, and zeros for -1."""
    taken = np.zeros((len(rows), table.shape[1]), table.dtype)
    known = rows >= 0
    taken[known] = table[rows[known]]
    return taken
