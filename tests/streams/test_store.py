"""Many streams in one store."""

import concurrent.futures

import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from keras import layers

from backends import BACKEND
from keras_init_lstm import Conditional, InitStateGRU, InitStateLSTM
from keras_init_lstm.streams import StreamStore
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

    @rule(ids=several, timesteps=st.integers(1, 2), apart=st.booleans())
    def call(self, ids, timesteps, apart):
        self.calls += 1
        x = normal(len(ids), timesteps, FEATURES, seed=self.calls)
        # Only a new or reset stream uses its context.
        context = normal(len(ids), CONTEXT, seed=self.calls)
        got = self.store(ids, x, context) if apart else self.store(ids, [x, context])
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
        while self.max_streams and len(self.read) > self.max_streams:
            del self.read[next(iter(self.read))]

    @rule(ids=several)
    def reset(self, ids):
        if self.raises_for_unknown(self.store.reset, ids):
            return
        self.store.reset(ids)
        self.alone.reset(ids)
        for one in ids:
            self.read[one] = np.zeros((0, FEATURES), "float32"), None

    @rule(ids=several)
    def forget(self, ids):
        if self.raises_for_unknown(self.store.forget, ids):
            return
        self.store.forget(ids)
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
        "ids", ["ab", [], [1, 1], [1.0], [True], [None], [("a", 1)], [b"a"], None, 5]
    )
    def test_invalid_ids(self, ids):
        model = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(2)])
        with pytest.raises(ValueError, match="`ids` must be a list of integers or"):
            StreamStore(model)(ids, np.zeros((1, 1, 1)))

    def test_more_ids_than_streams(self):
        model = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(2)])
        with pytest.raises(ValueError, match="at most max_streams=1"):
            StreamStore(model, 1)([1, 2], np.zeros((2, 1, 1)))

    @pytest.mark.parametrize("max_streams", [0, -1, 1.5, True, "many"])
    def test_an_invalid_number_of_streams(self, max_streams):
        model = keras.Sequential([keras.Input((None, 1)), InitStateLSTM(2)])
        with pytest.raises(ValueError, match="`max_streams` must be a positive"):
            StreamStore(model, max_streams)

    def test_a_layer_without_a_counterpart(self):
        class Own(layers.LSTM):
            pass

        model = keras.Sequential([keras.Input((None, 1)), Own(2, name="own")])
        with pytest.raises(ValueError, match="The layer own .* is not one of"):
            StreamStore(model)
