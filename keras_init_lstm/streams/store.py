"""Many streams, each with its own state, which one model reads in batches."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from keras_init_lstm._checks import check_positive_integer, check_shape
from keras_init_lstm._files import writable_dtype, write_whole
from keras_init_lstm.backend import backend
from keras_init_lstm.streams._table import Id, StreamTable, checked_ids, is_one_id
from keras_init_lstm.streams.states import check_names, checked_state
from keras_init_lstm.streams.step_model import make_step_model

if TYPE_CHECKING:
    from typing_extensions import Self

# Batch sizes are rounded up to a multiple of this number.
_BATCH_MULTIPLE = 16


class StreamStore:
    """The states of many streams by their IDs, with the model that reads them.

    A stateful layer carries one state for each row of a batch. A server has streams
    that come and go, and new data for a few of them at a time. A store knows each
    stream by its ID, and a batch may have any IDs in any order. A call advances each of
    these streams by one chunk. The outputs of a stream do not depend on the other
    streams, to float rounding; see `batch_size`. Several threads may call a store: the
    calls run one after another.

    A store is also a mapping from IDs to states: `store["pump 7"]` reads the states of
    a stream, `store["pump 7"] = states` sets them, and `del store["pump 7"]` forgets
    the stream.

    Args:
        model: A Sequential or Functional model, built, with recurrent layers of this
            package, or an `LSTM`, `GRU`, `SimpleRNN` or `RNN` of Keras, stateful or
            not, in nested models too. It is copied, with its weights. If the model has
            sources (see `as_encoder_and_decoder()`), a call reads them as a whole, and
            new and reset streams start from the initial states computed from them.
        max_streams: Positive integer, the largest number of streams: beyond it, the
            least recently used streams are forgotten. Defaults to `None`, no limit.
        batch_size: Positive integer, the number of rows of each batch that the model
            reads: a call with more IDs makes several batches, and the last one is
            padded. A kernel may round a row differently in another batch size, or in
            another place of the batch. With `batch_size=1`, each stream is alone, so
            its outputs are bit-identical whichever streams share a call. Defaults to
            `None`: the number of IDs, rounded up.

    Call arguments:
        ids: List of different integers or strings, one for each row; or a single one.
            A new ID starts from the initial states that the layers own.
        x: The inputs of the model, with one row for each ID: an array, or a list of
            arrays for a model with several inputs. For a single ID, which is no list,
            `x` and `context` have no batch axis, such as `(timesteps, features)`.
        context: The last inputs of the model, if they are the context of `Conditional`
            states; `x` then has only the other inputs. It is used for new and reset
            streams. Defaults to `None`.

    Returns:
        The outputs of the model, as arrays. For a single ID they have no batch axis.

    Raises:
        ValueError: If `model` is not as above, or can't be a stream (see
            `with_states_as_inputs()`); or if `max_streams` or `batch_size` is not a
            positive integer. At a call, if `ids` are not different integers or strings,
            or are more than `max_streams`; or if `x` and `context` do not fit the
            inputs of the model, with one row for each ID. All streams are then
            unchanged.

    Example:
    >>> lstm = keras_init_lstm.InitStateLSTM(4, initial_state="trainable")
    >>> model = keras.Sequential([keras.Input((None, 3)), lstm])
    >>> store = keras_init_lstm.streams.StreamStore(model, max_streams=1000)
    >>> outputs = store(["pump 1", "pump 7"], np.ones((2, 1, 3)))
    >>> output = store("pump 7", np.ones((5, 3)))
    >>> output.shape, len(store), "pump 1" in store
    ((4,), 2, True)
    >>> bool(np.allclose(output, model(np.ones((1, 6, 3)))[0], atol=1e-6))
    True
    >>> store["pump 8"] = store["pump 7"]
    >>> list(store)
    ['pump 1', 'pump 7', 'pump 8']
    """

    def __init__(
        self,
        model: keras.Model,
        max_streams: int | None = None,
        batch_size: int | None = None,
    ) -> None:
        check_positive_integer(max_streams, "max_streams", or_none=True)
        check_positive_integer(batch_size, "batch_size", or_none=True)
        self._step_model = make_step_model(model, has_reset_mask=True)
        inputs = self._step_model.model.inputs
        count = len(self._step_model.copied.inputs)
        # The reset mask is the input between them.
        self._given, self._states = inputs[:count], inputs[count + 1 :]
        self.max_streams = max_streams
        self.batch_size = batch_size
        self._lock = threading.RLock()
        self._table = StreamTable(
            [
                np.zeros((0, *state.shape[1:]), writable_dtype(state))
                for state in self._states
            ]
        )

    def __len__(self) -> int:
        return len(self._table)

    def __contains__(self, stream_id: object) -> bool:
        return stream_id in self._table

    def __iter__(self) -> Iterator[Id]:
        """Iterates over the IDs, from the least recently used one."""
        with self._lock:
            return iter(list(self._table))

    def __getitem__(self, ids: Id | Iterable[Id]) -> dict[str, np.ndarray]:
        """Returns the states of one stream, or of several.

        Args:
            ids: The ID of a stream, or a list of IDs.

        Returns:
            A dictionary with an array `(units,)` for each state, or for a list of IDs
            `(count, units)`. The keys are the keys of `get_states()`, such as
            `"lstm/h0"`. The states of a reset stream are NaN.

        Raises:
            KeyError: If an ID is unknown.
        """
        with self._lock:
            checked = self._known(ids, KeyError)
            fresh, states = self._table.read(checked)
        for state in states:
            state[fresh] = np.nan
        if is_one_id(ids):
            states = [state[0] for state in states]
        return dict(zip(self._step_model.state_names, states, strict=True))

    def __setitem__(self, ids: Id | Iterable[Id], states: Mapping[str, Any]) -> None:
        """Sets the states of one stream, or of several, which may be new.

        Args:
            ids: The ID of a stream, or a list of IDs.
            states: A dictionary as the one that `store[ids]` returns, such as from
                `estimate_initial_state()`. For a single ID, the arrays may also be
                `(1, units)`. A stream whose states are all NaN is reset.

        Raises:
            ValueError: If `ids` are not different integers or strings, or are more
                than `max_streams`; or if `states` has other keys, or an array of
                another shape or that is not finite. All streams are then unchanged.
        """
        checked = self._writable(ids)
        arrays, fresh = self._checked_states(states, len(checked), is_one_id(ids))
        with self._lock:
            self._write(checked, arrays, fresh)

    def __delitem__(self, ids: Id | Iterable[Id]) -> None:
        """Removes streams, as `forget()`.

        Raises:
            KeyError: If an ID is unknown. All streams are then unchanged.
        """
        with self._lock:
            self._table.remove(self._known(ids, KeyError))

    def __call__(self, ids: Id | Iterable[Id], x: Any, context: Any = None) -> Any:
        checked = self._writable(ids)
        given = self._inputs(checked, x, context, is_one_id(ids))
        with self._lock:
            fresh, states = self._table.read(checked)
            results = self._run([*given, fresh, *states])
            split = len(results) - len(states)
            self._write(checked, results[split:])
        outputs = results[:split]
        if is_one_id(ids):
            outputs = [output[0] for output in outputs]
        return self._step_model.outputs_of_model(outputs)

    def reset(self, ids: Id | Iterable[Id]) -> None:
        """Resets streams to their initial states.

        Args:
            ids: The ID of a stream, or a list of IDs.

        Raises:
            ValueError: If an ID is unknown or repeated. All streams are then unchanged.
        """
        with self._lock:
            self._table.reset(self._known(ids, ValueError))

    def forget(self, ids: Id | Iterable[Id]) -> None:
        """Removes streams. A later call with such an ID starts a new stream.

        Args:
            ids: The ID of a stream, or a list of IDs.

        Raises:
            ValueError: If an ID is unknown or repeated. All streams are then unchanged.
        """
        with self._lock:
            self._table.remove(self._known(ids, ValueError))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Saves all streams to an `.npz` file, completely or not at all.

        The file does not hold the weights of the model.

        Args:
            path: The path of the file. An existing file is replaced.
        """
        with self._lock:
            ids = list(self._table)
            fresh, states = self._table.read(ids)
        names = [state.name for state in self._states]
        arrays: dict[str, Any] = dict(zip(names, states, strict=True))
        write_whole(Path(path), **arrays, ids=json.dumps(ids), fresh=fresh)

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
            ids = checked_ids(ids) if ids else []
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
            states = [arrays[state.name] for state in self._states]
            self._table.replace(ids, states, arrays["fresh"])
        return self

    def _writable(self, ids: Any) -> list[Id]:
        checked = checked_ids(ids)
        if self.max_streams is not None and len(checked) > self.max_streams:
            raise ValueError(
                f"Argument `ids` must have at most max_streams={self.max_streams} "
                f"entries. Received: {len(checked)} IDs"
            )
        return checked

    def _known(self, ids: Any, error: type[Exception]) -> list[Id]:
        checked = checked_ids(ids)
        unknown = [stream_id for stream_id in checked if stream_id not in self._table]
        if unknown:
            raise error(
                "Argument `ids` must be IDs of existing streams. "
                f"Received: {unknown}, which are unknown"
            )
        return checked

    def _inputs(
        self, ids: list[Id], x: Any, context: Any, is_one: bool
    ) -> list[np.ndarray]:
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
        rows = f"one row for each of the {len(ids)} IDs"
        batch: tuple[int, ...] = (len(ids),)
        if is_one:
            rows, batch = "no batch axis, because `ids` is a single ID", ()
        for array, tensor in zip(arrays, expected, strict=True):
            check_shape(
                array,
                (*batch, *tensor.shape[1:]),
                f"Argument `x` must have {rows}, for the input {tensor.name} of shape "
                f"{tensor.shape}.",
            )
        return [array[None] for array in arrays] if is_one else arrays

    def _checked_states(
        self, states: Any, count: int, is_one: bool
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """Returns states as arrays `(count, ...)`, and which streams are fresh."""
        names = self._step_model.state_names
        check_names(states, names)
        arrays = []
        for name, state in zip(names, self._states, strict=True):
            shape, value = (count, *state.shape[1:]), states[name]
            with contextlib.suppress(ValueError):  # Lists of different lengths.
                if is_one and np.ndim(value) == len(shape) - 1:
                    value = np.expand_dims(value, 0)
            arrays.append(checked_state(value, name, shape, writable_dtype(state)))
        are_nan = [np.isnan(array.reshape(count, -1)).all(axis=1) for array in arrays]
        number = np.sum(are_nan, axis=0)
        if (number % len(arrays)).any():
            raise ValueError(
                "Argument `states` must have NaN in all states of a stream, to reset "
                "it, or in none. Received: NaN in some states of a stream"
            )
        return arrays, number == len(arrays)

    def _run(self, inputs: list[np.ndarray]) -> list[np.ndarray]:
        count = len(inputs[0])
        size = self.batch_size or _rounded_up(count)
        model, batches = self._step_model.model, []
        for first in range(0, count, size):
            rows = slice(first, min(first + size, count))
            # `np.resize()` repeats the rows.
            batch = [np.resize(x[rows], (size, *x.shape[1:])) for x in inputs]
            outputs = keras.tree.flatten(model.predict_on_batch(batch))
            batches.append([output[: rows.stop - first] for output in outputs])
        return [np.concatenate(parts) for parts in zip(*batches, strict=True)]

    def _write(
        self, ids: list[Id], states: list[np.ndarray], fresh: Any = False
    ) -> None:
        self._table.write(ids, states, fresh)
        if self.max_streams is not None:
            self._table.keep_last_used(self.max_streams)


def _rounded_up(count: int) -> int:
    # A processor computes the last rows of a batch with other instructions if they do
    # not fill a vector, and rounds differently.
    size = -(-count // _BATCH_MULTIPLE) * _BATCH_MULTIPLE
    if backend.compiles_each_shape:
        size = 1 << (size - 1).bit_length()
    return size
