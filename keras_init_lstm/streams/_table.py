"""The states of streams by their IDs."""

import collections
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np

from keras_init_lstm._checks import described

Id: TypeAlias = int | str


def is_one_id(ids: Any) -> bool:
    """Whether `ids` is a single ID, and not an iterable of IDs."""
    return isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable)


def checked_ids(ids: Any) -> list[Id]:
    """Returns one ID or several as a list, without NumPy's types.

    Raises:
        ValueError: If `ids` are not integers or strings, or are not different.
    """
    # JSON cannot serialise NumPy scalars.
    checked = [
        value.item() if isinstance(value, (np.integer, np.str_)) else value
        for value in ([ids] if is_one_id(ids) else ids)
    ]
    are_valid = all(type(value) in (int, str) for value in checked)
    if not checked or not are_valid or len(set(checked)) != len(checked):
        raise ValueError(
            "Argument `ids` must be an integer or a string, or a list of them, not "
            f"empty, and without duplicates. Received: ids={described(ids)}"
        )
    return checked


class StreamTable:
    """The states of streams by their IDs, in arrays with a row for each stream.

    A fresh stream starts from the initial states at its next call. Iteration yields the
    IDs, from the least recently used one.

    Args:
        states: For each state an array of shape `(0, ...)`, from which shape and dtype
            are taken.
    """

    def __init__(self, states: Sequence[np.ndarray]) -> None:
        # The row of each ID, in the order of last use.
        self._rows: collections.OrderedDict[Id, int] = collections.OrderedDict()
        self._free: list[int] = []
        self._states = list(states)
        self._fresh = np.zeros(0, bool)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._rows

    def __iter__(self) -> Iterator[Id]:
        return iter(self._rows)

    def read(self, ids: Iterable[Id]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Returns whether streams are fresh, `(count,)`, and each of their states.

        An unknown stream is fresh, and its states are zeros.
        """
        rows = np.array([self._rows.get(stream_id, -1) for stream_id in ids], int)
        is_known = rows >= 0
        fresh = ~is_known
        fresh[is_known] = self._fresh[rows[is_known]]
        states = [
            np.zeros((len(rows), *table.shape[1:]), table.dtype)
            for table in self._states
        ]
        for array, table in zip(states, self._states, strict=True):
            array[is_known] = table[rows[is_known]]
        return fresh, states

    def write(
        self, ids: Iterable[Id], states: Sequence[Any], fresh: Any = False
    ) -> None:
        """Sets the states of streams, which may be new. They are then the last used."""
        ids = list(ids)
        for stream_id in ids:
            if stream_id not in self._rows:
                self._rows[stream_id] = self._free_row()
            self._rows.move_to_end(stream_id)
        rows = [self._rows[stream_id] for stream_id in ids]
        self._fresh[rows] = fresh
        for table, state in zip(self._states, states, strict=True):
            table[rows] = state

    def reset(self, ids: Iterable[Id]) -> None:
        """Makes known streams fresh."""
        self._fresh[[self._rows[stream_id] for stream_id in ids]] = True

    def remove(self, ids: Iterable[Id]) -> None:
        """Removes known streams."""
        self._free += [self._rows.pop(stream_id) for stream_id in ids]

    def keep_last_used(self, count: int) -> None:
        """Removes the least recently used streams beyond a number of streams."""
        while len(self._rows) > count:
            _, row = self._rows.popitem(last=False)
            self._free.append(row)

    def replace(
        self, ids: Sequence[Id], states: Sequence[np.ndarray], fresh: np.ndarray
    ) -> None:
        """Replaces all streams, from the least recently used one."""
        self._rows = collections.OrderedDict(zip(ids, range(len(ids)), strict=True))
        self._free = []
        self._fresh = fresh
        self._states = [
            state.astype(table.dtype)
            for state, table in zip(states, self._states, strict=True)
        ]

    def _free_row(self) -> int:
        if not self._free:
            # Double the arrays: they are then rarely copied.
            size = len(self._fresh)
            more = max(64, size)
            self._free = list(range(size + more - 1, size - 1, -1))
            self._fresh = np.append(self._fresh, np.zeros(more, bool))
            self._states = [
                np.concatenate([table, np.zeros((more, *table.shape[1:]), table.dtype)])
                for table in self._states
            ]
        return self._free.pop()
