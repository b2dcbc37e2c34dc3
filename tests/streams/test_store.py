"""Many streams in one store."""

import concurrent.futures

import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from keras import layers

from backends import BACKEND
from keras_init_lstm import (
    Conditional,
    InitStateGRU,
    InitStateLSTM,
    InitStateSimpleRNN,
)
from keras_init_lstm.streams import StreamStore, as_stateful, get_states, set_states
from models import FEATURES, STREAM_KINDS, UNITS, layer_of, normal, with_weights
from oracles import assert_same, flat, to_numpy
from strategies import at_most

CONTEXT = 2


def with_context():
    """A model with a context, a nested model, and a layer of Keras."""
    x, context = keras.Input((None, FEATURES)), keras.Input((CONTEXT,))
    start = Conditional(layers.Dense(UNITS))
    layer = InitStateLSTM(
        UNITS, initial_state=start, return_sequences=True, use_fused=False
    )
    inner = [keras.Input((None, UNITS)), layer_of("of Keras"), layers.Dense(2)]
    h = keras.Sequential(inner)(layer(x, context=context))
    last = InitStateGRU(UNITS, initial_state="trainable", use_fused=False)(h)
    return with_weights(keras.Model([x, context], {"all": h, "last": last}))


ids_of = st.integers(0, 5).map(lambda k: k if k % 2 else f"stream {k}")
several = st.lists(ids_of, min_size=1, max_size=3, unique=True)


class TestNeighbours:
    """The outputs of a stream do not depend on the other streams of its batches."""

    @pytest.mark.parametrize("use_fused", ["auto", False])
    @pytest.mark.parametrize("make", [InitStateLSTM, InitStateGRU, InitStateSimpleRNN])
    @pytest.mark.parametrize("batch_size", [1, 4, None])
    def test_in_any_batches(self, make, use_fused, batch_size):
        # A product of 33 units ends in a part of a vector.
        layer = make(33, initial_state=0.5, use_fused=use_fused, return_sequences=True)
        model = keras.Sequential([keras.Input((None, 5)), layer, layers.Dense(3)])
        with_weights(model)
        count, timesteps = 10, 8
        x = normal(count, 2 * timesteps, 5)
        alone = StreamStore(model, batch_size=batch_size)
        together = StreamStore(model, batch_size=batch_size)
        tolerance = 0 if batch_size == 1 else 1e-5
        rng = np.random.default_rng(0)
        for part in (slice(0, timesteps), slice(timesteps, None)):
            want = np.stack([alone(row, x[row, part]) for row in range(count)])
            rows = rng.permutation(count)
            for some in (rows[:3], rows[3:4], rows[4:]):
                got = together(some.tolist(), x[some, part])
                assert_same(got, want[some], tolerance)
        ids = list(range(count))
        for name, states in alone[ids].items():
            assert_same(together[ids][name], states, tolerance)


class Interleaved(RuleBasedStateMachine):
    """A store, compared with a call of the model for all that a stream has read."""

    @initialize(max_streams=st.sampled_from([None, 3]))
    def start(self, max_streams):
        self.model = with_context()
        self.store = StreamStore(self.model, max_streams)
        self.alone = StreamStore(self.model)
        self.max_streams = max_streams
        # The timesteps and the context of each stream, in the order of last use.
        self.read = {}
        self.calls = 0

    @rule(
        ids=several,
        timesteps=st.integers(1, 2),
        how=st.sampled_from(["a list of inputs", "a context", "one ID"]),
    )
    def call(self, ids, timesteps, how):
        self.calls += 1
        ids = ids[:1] if how == "one ID" else ids
        x = normal(len(ids), timesteps, FEATURES, seed=self.calls)
        # Only a new or reset stream uses its context.
        context = normal(len(ids), CONTEXT, seed=self.calls)
        if how == "a list of inputs":
            got = self.store(ids, [x, context])
        elif how == "a context":
            got = self.store(ids, x, context)
        else:
            got = self.store(ids[0], x[0], context[0])
            got = {name: output[None] for name, output in got.items()}
        for row, one in enumerate(ids):
            if one not in self.read and one in self.alone:
                self.alone.forget([one])
            mine = slice(row, row + 1)
            alone = self.alone([one], x[mine], context[mine])
            assert_same([got["all"][mine], got["last"][mine]], flat(alone), TOLERANCE)
            before, first_context = self.read.pop(one, (x[row, :0], None))
            if first_context is None:
                first_context = context[row]
            whole = np.concatenate([before, x[row]])
            self.read[one] = whole, first_context
            want = self.model([whole[None], first_context[None]])
            assert_same(got["last"][mine], want["last"], 1e-5)
            chunk_outputs = to_numpy(want["all"])[:, len(before) :]
            assert_same(got["all"][mine], chunk_outputs, 1e-5)
        self.forget_the_oldest()

    def forget_the_oldest(self):
        while self.max_streams and len(self.read) > self.max_streams:
            del self.read[next(iter(self.read))]

    @rule(ids=several, others=several, as_list=st.booleans())
    def copy_states(self, ids, others, as_list):
        pairs = list(zip(ids, others, strict=False))
        if not as_list:
            pairs = pairs[:1]
        ids, others = ([pair[side] for pair in pairs] for side in (0, 1))
        if all(one in self.read for one in ids):
            read = [self.read[one] for one in ids]
            for store in (self.store, self.alone):
                if as_list:
                    store[others] = store[ids]
                else:
                    store[others[0]] = store[ids[0]]
            for other, timesteps_and_context in zip(others, read, strict=True):
                self.read.pop(other, None)
                self.read[other] = timesteps_and_context
            self.forget_the_oldest()

    @rule(ids=several)
    def reset(self, ids):
        if self.raises_for_unknown(self.store.reset, ids):
            return
        self.store.reset(ids)
        self.alone.reset(ids)
        for one in ids:
            self.read[one] = np.zeros((0, FEATURES), "float32"), None

    @rule(ids=several, by_del=st.booleans())
    def forget(self, ids, by_del):
        if self.raises_for_unknown(self.store.forget, ids):
            with pytest.raises(KeyError, match="unknown"):
                del self.store[ids]
            with pytest.raises(KeyError, match="unknown"):
                self.store[ids]
        elif by_del:
            del self.store[ids if len(ids) > 1 else ids[0]]
        else:
            self.store.forget(ids if len(ids) > 1 else ids[0])
        ids = [one for one in ids if one in self.read and one not in self.store]
        for one in ids:
            del self.read[one]

    def raises_for_unknown(self, function, ids):
        unknown = [one for one in ids if one not in self.read]
        if unknown:
            with pytest.raises(ValueError, match="`ids` must be IDs of existing"):
                function(ids)
        return bool(unknown)

    @rule(ids=several)
    def invalid_calls(self, ids):
        x, context = normal(len(ids), 1, FEATURES), normal(len(ids), CONTEXT)
        for arguments in (
            ([*ids, ids[0]], [x, context]),
            ([*ids, "one more"], [x, context]),
            (ids, [x, context[:0]]),
            (ids, x),
            (ids, [x[..., :1], context]),
        ):
            with pytest.raises(ValueError, match="Argument `(ids|x)`"):
                self.store(*arguments)

    @invariant()
    def holds_its_streams(self):
        assert list(self.store) == list(self.read)
        assert len(self.store) == len(self.read)
        assert all(one in self.store for one in self.read)


# Keras's own loop runs, with `use_fused=False`.
TOLERANCE = 0.0 if BACKEND == "tensorflow" else 1e-5
TestInterleaved = Interleaved.TestCase
TestInterleaved.settings = at_most(8, stateful_step_count=12)


class TestStreamStore:
    @pytest.mark.parametrize("kind", [k for k in STREAM_KINDS if k != "not registered"])
    def test_every_kind(self, kind):
        model = with_weights(
            keras.Sequential([keras.Input((None, FEATURES)), layer_of(kind)])
        )
        store = StreamStore(model)
        x = normal(5, 6, FEATURES)
        got = {}
        for ids in ([4, 0], [1], [0, 2, 4], [3, 1], [0, 1, 2, 3, 4]):
            done = [len(got.get(one, ())) for one in ids]
            chunk = np.stack([x[i, t : t + 1] for i, t in zip(ids, done, strict=True)])
            for one, row in zip(ids, store(ids, chunk), strict=True):
                got[one] = [*got.get(one, ()), row[0]]
        for one, outputs in got.items():
            want = flat(model(x[one : one + 1, : len(outputs)]))[0][0]
            assert_same(np.stack(outputs), want, 1e-5)

    def test_states_have_the_names_and_values_of_a_stateful_copy(self):
        model = with_weights(
            keras.Sequential(
                [
                    keras.Input((None, FEATURES)),
                    InitStateLSTM(
                        UNITS,
                        initial_state="trainable",
                        return_sequences=True,
                        name="a",
                    ),
                    InitStateGRU(UNITS, name="b"),
                ]
            )
        )
        store, stream = StreamStore(model), as_stateful(model, 2)
        x = normal(2, 5, FEATURES)
        store(["p", "q"], x[:, :3])
        stream(x[:, :3])
        carried = get_states(stream)
        assert list(store["p"]) == ["a/h0", "a/c0", "b/h0"]
        for row, one in enumerate(["p", "q"]):
            assert_same(
                list(store[one].values()), [carried[k][row] for k in carried], 1e-5
            )
        assert_same(
            list(store[["q", "p"]].values()), [v[::-1] for v in carried.values()], 1e-5
        )
        set_states(stream, store[["q", "p"]])
        assert_same(stream(x[::-1, 3:]), store(["q", "p"], x[::-1, 3:]), 1e-5)
        # A list of one ID and a single ID take the states of a batch of one.
        states = {name: normal(1, *v.shape[1:]) for name, v in carried.items()}
        store["new"], store[["list"]] = states, states
        assert_same(list(store["new"].values()), [v[0] for v in states.values()])
        assert_same(list(store[["list"]].values()), list(states.values()))
        store.reset("p")
        assert all(np.isnan(state).all() for state in store["p"].values())
        store["new"] = store["p"]
        assert_same(store("new", x[0]), model(x[:1])[0], 1e-5)

    @pytest.mark.parametrize(
        ("states", "message"),
        [
            (None, r"`states` must be a dictionary .* \['lstm/c0', 'lstm/h0'\]"),
            ({"lstm/h0": np.ones(2)}, "`states` must be a dictionary"),
            ({"h0": np.ones(2), "c0": np.ones(2)}, "`states` must be a dictionary"),
            ({"lstm/h0": np.ones(2), "lstm/c0": np.ones(3)}, r"`states\['lstm/c0'\]`"),
            ({"lstm/h0": np.ones((2, 2)), "lstm/c0": np.ones(2)}, r"\['lstm/h0'\]`"),
            ({"lstm/h0": [[1], [1, 2]], "lstm/c0": np.ones(2)}, r"\['lstm/h0'\]`"),
            ({"lstm/h0": np.ones(2), "lstm/c0": [1, np.inf]}, r"\['lstm/c0'\]`"),
            ({"lstm/h0": np.ones(2), "lstm/c0": [1, np.nan]}, r"\['lstm/c0'\]`"),
            ({"lstm/h0": np.ones(2), "lstm/c0": [np.nan] * 2}, "NaN in some states"),
        ],
    )
    def test_invalid_states_change_nothing(self, states, message):
        model = keras.Sequential(
            [keras.Input((None, 1)), InitStateLSTM(2, name="lstm")]
        )
        store = StreamStore(model, max_streams=1)
        store("old", np.ones((3, 1)))
        before = store["old"]
        for one in ("old", "new"):
            with pytest.raises(ValueError, match=message):
                store[one] = states
        with pytest.raises(ValueError, match="at most max_streams=1"):
            store[["old", "new"]] = states
        assert list(store) == ["old"]
        assert_same(store["old"], before)

    def test_a_single_id_has_no_batch_axis(self):
        model = keras.Sequential([keras.Input((None, 1)), InitStateGRU(2)])
        store = StreamStore(model)
        with pytest.raises(ValueError, match="`x` must have no batch axis, because"):
            store("pump", np.ones((1, 3, 1)))
        with pytest.raises(ValueError, match="`x` must have one row for each of the 1"):
            store(["pump"], np.ones((3, 1)))
        assert len(store) == 0
        assert_same(store(7, np.ones((3, 1))), model(np.ones((1, 3, 1)))[0], 1e-6)

    def test_grows_and_reuses_forgotten_rows(self):
        model = keras.Sequential([keras.Input((None, 1)), InitStateGRU(2)])
        store = StreamStore(model)
        x = np.ones((300, 1, 1))
        first = store(range(300), x)
        assert_same(store([0], x[:1]), model(np.ones((1, 2, 1))), 1e-6)
        store.forget(range(1, 300))
        assert_same(store(range(1, 300), x[1:]), first[1:])

    @pytest.mark.parametrize("shape", [(), (None,)])
    def test_a_model_with_a_reset_mask(self, shape):
        inputs, reset = keras.Input((None, FEATURES)), keras.Input(shape, dtype="bool")
        options = {"initial_state": 0.5, "return_sequences": True}
        layer = InitStateLSTM(UNITS, **options)
        model = keras.Model([inputs, reset], layer(inputs, reset_mask=reset))
        store = StreamStore(model)
        x = normal(2, 6, FEATURES)
        marks = np.zeros((2, 6), bool)
        marks[0, [0, 3]] = True
        given = marks[:, 0] if shape == () else marks[:, :3]
        got = [store(["a", "b"], [x[:, :3], given])]
        given = marks[:, 3] if shape == () else marks[:, 3:]
        got.append(store(["a", "b"], [x[:, 3:], given]))
        want = layer(x, reset_mask=marks)
        assert_same(np.concatenate(got, 1), want, 1e-5)

    def test_a_file_holds_all_streams(self, tmp_path):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("ours")])
        store = StreamStore(model)
        x = normal(3, 2, FEATURES)
        store(["a", 1, "b"], x)
        store.reset([1])
        store.save(tmp_path / "streams.npz")
        other = StreamStore(model).load(tmp_path / "streams.npz")
        assert list(other) == ["a", 1, "b"]
        new = normal(3, 2, FEATURES, seed=1)
        assert_same(other([1, "a", "b"], new), store([1, "a", "b"], new))
        with pytest.raises(ValueError, match="at most max_streams=2"):
            StreamStore(model, 2).load(tmp_path / "streams.npz")
        wider = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(UNITS + 1)])
        with pytest.raises(ValueError, match="streams of a model with the states"):
            StreamStore(wider).load(tmp_path / "streams.npz")
        StreamStore(model).save(tmp_path / "empty.npz")
        assert len(other.load(tmp_path / "empty.npz")) == 0

    def test_a_broken_file_changes_nothing(self, tmp_path):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("ours")])
        store, path = StreamStore(model), tmp_path / "streams.npz"
        store(["a", "b"], normal(2, 1, FEATURES))
        store.save(path)
        whole, arrays = path.read_bytes(), dict(np.load(path))

        def with_ids(ids):
            np.savez(path, **{**arrays, "ids": ids})
            return path.read_bytes()

        for content in (
            b"",
            b"text",
            whole[: len(whole) // 2],
            with_ids("{"),
            with_ids('["a"]'),
            with_ids('["a", "a"]'),
            with_ids(3),
        ):
            path.write_bytes(content)
            with pytest.raises(ValueError, match="`path` must be a file that"):
                store.load(path)
        assert list(store) == ["a", "b"]

    def test_a_failed_save_leaves_no_file(self, tmp_path):
        model = keras.Sequential([keras.Input((None, 1)), InitStateGRU(1)])
        (tmp_path / "folder").mkdir()
        with pytest.raises(OSError, match="folder"):
            StreamStore(model).save(tmp_path / "folder")
        assert [path.name for path in tmp_path.iterdir()] == ["folder"]

    def test_numpy_ids_equal_python_ids(self):
        model = keras.Sequential([keras.Input((None, 1)), InitStateGRU(1)])
        store = StreamStore(model)
        store(np.array(["a", "b"]), np.ones((2, 1, 1)))
        store(np.array([1, 2], "uint8"), np.ones((2, 1, 1)))
        assert [type(one) for one in store] == [str, str, int, int]

    def test_a_failed_call_changes_no_stream(self, monkeypatch):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("ours")])
        store = StreamStore(model, max_streams=2)
        x = normal(2, 1, FEATURES)
        store(["a", "b"], x)

        def fails(_):
            raise RuntimeError("out of memory")

        with monkeypatch.context() as context:
            context.setattr(store._step_model.model, "predict_on_batch", fails)
            with pytest.raises(RuntimeError, match="out of memory"):
                store(["c", "a"], x)
        assert list(store) == ["a", "b"]

    def test_several_threads(self):
        model = keras.Sequential([keras.Input((None, FEATURES)), layer_of("ours")])
        store, x = StreamStore(model), normal(8, 10, FEATURES)

        def read(one):
            return [store([one], x[one : one + 1, t : t + 1])[0] for t in range(10)]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            got = list(pool.map(read, range(8)))
        assert_same(np.stack([np.concatenate(rows) for rows in got]), model(x), 1e-5)

    @pytest.mark.parametrize(
        "ids", [[], [1, 1], [1.0], [True], [None], [("a", 1)], [b"a"], None, 5.0, b"a"]
    )
    def test_invalid_ids(self, ids):
        model = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(2)])
        store, message = StreamStore(model), "`ids` must be an integer or a string, or"
        for use in (
            lambda: store(ids, np.zeros((1, 1, 1))),
            lambda: store[ids],
            lambda: store.__setitem__(ids, {}),
            lambda: store.__delitem__(ids),
        ):
            with pytest.raises(ValueError, match=message):
                use()

    def test_more_ids_than_streams(self):
        model = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(2)])
        with pytest.raises(ValueError, match="at most max_streams=1"):
            StreamStore(model, 1)([1, 2], np.zeros((2, 1, 1)))

    @pytest.mark.parametrize("argument", ["max_streams", "batch_size"])
    @pytest.mark.parametrize("value", [0, -1, 1.5, True, "many"])
    def test_an_invalid_number(self, argument, value):
        model = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(2)])
        with pytest.raises(ValueError, match=f"`{argument}` must be a positive"):
            StreamStore(model, **{argument: value})

    def test_a_layer_without_a_counterpart(self):
        class Own(layers.LSTM):
            pass

        model = keras.Sequential([keras.Input((None, 1)), Own(2, name="own")])
        with pytest.raises(ValueError, match="The layer own .* is not one of"):
            StreamStore(model)
