"""Encoder-decoders as two models, decoded one timestep at a time."""

import hypothesis
import keras
import numpy as np
import pytest
from hypothesis import strategies as st
from keras import layers

import keras_init_lstm
from keras_init_lstm import (
    Conditional,
    InitStateGRU,
    InitStateLSTM,
    InitStateRNN,
    InitStateSimpleRNN,
)
from keras_init_lstm.adaptation import estimate_initial_state
from keras_init_lstm.streams import (
    StreamStore,
    as_encoder_and_decoder,
    as_stateful,
    reset_states,
)
from models import BATCH, FEATURES, UNITS, chunks, normal, recurrent, with_weights
from oracles import assert_same, flat, nested, to_numpy
from strategies import FUSIBLE, LAYERS, at_most

TIMESTEPS, VOCABULARY = 6, 5
ARRAYS = {
    "source": normal(BATCH, 7, FEATURES),
    "tokens": np.array([[1, 2, 3, 4, 0, 0, 0], [4, 3, 1, 2, 1, 2, 3]] * 2),
    "static": normal(BATCH, 2),
    "target": normal(BATCH, TIMESTEPS, FEATURES, seed=1),
}
CLOSE = 1e-5


def whole(model):
    """The outputs of a model for whole sequences."""
    given = keras.tree.map_structure(lambda x: ARRAYS[x.name], model.input)
    return flat(model(given))


def arrays_at(tensor, rows, begin, end):
    """Rows of an input of a model, of the target only some timesteps."""
    array = ARRAYS[tensor.name][rows]
    return array[:, begin:end] if tensor.name == "target" else array


def encoded(encoder):
    sources = [ARRAYS[tensor.name] for tensor in encoder.inputs]
    given = sources if len(sources) > 1 else sources[0]
    return keras.tree.flatten(encoder.predict_on_batch(given))


def loaded(folder, model):
    return keras.saving.load_model(folder / f"{model.name}.keras")


def step_by_step(encoder, decoder, lengths):
    """The joined outputs of a decoder for chunks of the target."""
    given, parts = encoded(encoder), []
    for chunk in chunks(ARRAYS["target"], *lengths):
        outputs = decoder.predict_on_batch([chunk, *given])
        count = sum(name.endswith("_out") for name in decoder.output_names)
        parts.append(outputs[:-count])
        given[-count:] = outputs[-count:]
    return [np.concatenate(part, 1) for part in zip(*parts, strict=True)]


# Models that map the inputs `source` and `target` to a value for each target timestep.


def inputs():
    source = keras.Input((None, FEATURES), name="source")
    return source, keras.Input((None, FEATURES), name="target")


def lstm():
    """The encoder-decoder of Keras's tutorial."""
    source, target = inputs()
    _, h, c = layers.LSTM(UNITS, return_state=True)(source)
    decoder = layers.LSTM(UNITS, return_sequences=True, return_state=True)
    h, _, _ = decoder(target, initial_state=[h, c])
    outputs = layers.Dense(VOCABULARY, activation="softmax")(h)
    return keras.Model([source, target], outputs)


def of_this_package():
    source, target = inputs()
    _, h = InitStateGRU(UNITS, initial_state="trainable", return_state=True)(source)
    decoder = InitStateLSTM(UNITS, initial_state="trainable", return_sequences=True)
    outputs = layers.Dropout(0.5)(decoder(target, initial_state=[h, None]))
    return keras.Model([source, target], outputs)


def stacked():
    """Stacked cells, then layers that are given a state or own one."""
    source, target = inputs()
    cells = [layers.LSTMCell(UNITS), layers.GRUCell(UNITS + 1)]
    _, *states = layers.RNN(cells, return_state=True)(source)
    last = layers.SimpleRNN(UNITS)(source)
    options = {"return_sequences": True}
    h = layers.RNN([type(c)(c.units) for c in cells], **options)(target, states)
    h = InitStateRNN(layers.SimpleRNNCell(UNITS), initial_state=0.5, **options)(h)
    h = layers.SimpleRNN(UNITS, **options)(h, initial_state=last)
    h = layers.GRU(UNITS, **options)(h)
    h = InitStateSimpleRNN(UNITS, initial_state=-0.5, **options)(h)
    return keras.Model([source, target], layers.TimeDistributed(layers.Dense(1))(h))


def conditional():
    """The contexts are a source, and what a bidirectional encoder computes from it."""
    source, target = inputs()
    context = layers.Bidirectional(layers.LSTM(UNITS))(source)
    first = Conditional(layers.Dense(UNITS))
    flattened = Conditional(
        keras.Sequential([layers.GlobalMaxPool1D(), layers.Dense(UNITS)])
    )
    options = {"return_sequences": True}
    h = InitStateLSTM(UNITS, initial_state=first, **options)(target, context=context)
    start = [flattened, None]
    h = InitStateLSTM(UNITS, initial_state=start, **options)(h, context=source)
    return keras.Model([source, target], h)


def one_encoder():
    """One encoder computes all the states from a padded source."""
    source, (_, target) = keras.Input((None,), dtype="int32", name="tokens"), inputs()
    past = layers.Embedding(VOCABULARY, FEATURES, mask_zero=True)(source)
    start = Conditional(layers.LSTM(UNITS, return_state=True))
    decoder = InitStateLSTM(UNITS, initial_state=start, return_sequences=True)
    return keras.Model([source, target], decoder(target, context=past))


def several_sources():
    """Several inputs and outputs, in dictionaries, and nested models."""
    source, target = inputs()
    static = keras.Input((2,), name="static")
    inner = keras.Input((None, FEATURES))
    decoder_input, state = keras.Input((None, FEATURES)), keras.Input((UNITS,))
    encoder = keras.Model(inner, layers.GRU(UNITS)(inner), name="encoder")
    gru = layers.GRU(UNITS, return_sequences=True, name="gru")
    decoded = gru(decoder_input, initial_state=state)
    decoder = keras.Model(
        [decoder_input, state], layers.Dense(2)(decoded), name="decoder"
    )
    h = encoder(source) + layers.Dense(UNITS)(static)
    outputs = {"h": decoder([target, h]), "target": layers.Dense(1)(target)}
    given = {"target": target, "source": source, "static": static}
    return keras.Model(given, outputs)


def attending(attend):
    def make():
        source = keras.Input((None,), dtype="int32", name="tokens")
        _, target = inputs()
        embedding = layers.Embedding(VOCABULARY, FEATURES, mask_zero=True)
        encoder = layers.LSTM(UNITS, return_sequences=True, return_state=True)
        encoded, h, c = encoder(embedding(source))
        decoder = layers.LSTM(UNITS, return_sequences=True)
        decoded = decoder(target, initial_state=[h, c])
        attended = attend(decoded, encoded)
        h = layers.Concatenate()([decoded, attended])
        h = layers.LSTM(UNITS, return_sequences=True)(h)
        return keras.Model([source, target], layers.LayerNormalization()(h))

    return make


MODELS = {
    "lstm": lstm,
    "of this package": of_this_package,
    "stacked": stacked,
    "conditional": conditional,
    "one encoder": one_encoder,
    "several sources": several_sources,
    "Attention": attending(lambda q, v: layers.Attention()([q, v])),
    "AdditiveAttention": attending(lambda q, v: layers.AdditiveAttention()([q, v])),
    "MultiHeadAttention": attending(lambda q, v: layers.MultiHeadAttention(2, 2)(q, v)),
    "with keys": attending(
        lambda q, v: layers.MultiHeadAttention(2, 2)(q, v, key=layers.Dense(3)(v))
    ),
}


ATTENTION = {
    "none": lambda query, _: query,
    "dot": lambda query, value: layers.Attention()([query, value]),
    "heads": lambda query, value: layers.MultiHeadAttention(2, 2)(query, value),
}


STARTS = ("zeros", "trainable", "conditional", "given to Keras's", "given to ours")
decoder_layers = st.tuples(
    st.sampled_from(LAYERS), st.sampled_from(STARTS), st.sampled_from(sorted(ATTENTION))
)


def decoder_of(drawn):
    """A model with a decoder of the layers that `decoder_layers` has drawn."""
    source, target = inputs()
    memory, summary = layers.Dense(UNITS)(source), layers.GlobalMaxPool1D()(source)
    h = target
    for name, start, attention in drawn:
        package = layers if start in ("zeros", "given to Keras's") else keras_init_lstm
        arguments = {"units": UNITS, "dtype": "float32", "return_sequences": True}
        if start == "trainable":
            arguments["initial_state"] = "trainable"
        elif start == "conditional":
            arguments["initial_state"] = Conditional(layers.Dense(UNITS))
            # An encoder has one size, and the states of other layers differ in size.
            name = name if name in FUSIBLE else "LSTM"
        layer = recurrent(package, name, arguments)
        given = {"context": summary} if start == "conditional" else {}
        if start.startswith("given"):
            sizes = keras.tree.flatten(layer.state_size)
            states = [layers.Dense(size)(summary) for size in sizes]
            given["initial_state"] = nested(layer, states)
        h = layers.Dense(UNITS)(layer(h, **given))
        h = ATTENTION[attention](h, memory)
    return with_weights(keras.Model([source, target], layers.Dense(1)(h)))


@at_most(12)
@hypothesis.given(
    st.lists(decoder_layers, min_size=1, max_size=2),
    st.sets(st.integers(1, TIMESTEPS - 1)),
)
def test_chunks_of_any_decoder_equal_the_whole_target(drawn, cuts):
    model = decoder_of(drawn)
    halves = as_encoder_and_decoder(model, ["source"])
    lengths = np.diff([0, *sorted(cuts), TIMESTEPS])
    assert_same(step_by_step(*halves, lengths), whole(model), CLOSE)


class TestAsEncoderAndDecoder:
    @pytest.mark.parametrize("name", MODELS)
    def test_chunks_equal_the_whole_target(self, name, tmp_path):
        model = with_weights(MODELS[name]())
        want = whole(model)
        encoder, decoder = as_encoder_and_decoder(model)
        assert [tensor.name for tensor in decoder.inputs][:1] == ["target"]
        for lengths in ([1] * TIMESTEPS, [TIMESTEPS]):
            assert_same(step_by_step(encoder, decoder, lengths), want, CLOSE)
        for half in (encoder, decoder):
            half.save(tmp_path / f"{half.name}.keras")
        halves = [loaded(tmp_path, half) for half in (encoder, decoder)]
        assert_same(step_by_step(*halves, [2, 4]), want, CLOSE)
        assert_same(whole(model), want)

    @pytest.mark.parametrize("name", MODELS)
    def test_a_store_reads_the_sources_at_each_call(self, name):
        model = with_weights(MODELS[name]())
        want = whole(model)
        store = StreamStore(model)
        ids = [f"stream {row}" for row in range(BATCH)]
        store(ids, [arrays_at(x, slice(None), 0, 1) for x in model.inputs])
        store.reset(ids[1:3])
        store.forget(ids[3:])
        read = {0: 1, 1: 0, 2: 0, 3: 0}
        for rows, length in (([2, 0], 2), ([1, 3], 1), ([3, 1, 0], 3), ([2], 4)):
            for begin in {read[row] for row in rows}:
                some = [row for row in rows if read[row] == begin]
                end = begin + length
                given = [arrays_at(x, some, begin, end) for x in model.inputs]
                got = store([ids[row] for row in some], given)
                assert_same(got, [output[some, begin:end] for output in want], CLOSE)
                read |= dict.fromkeys(some, end)

    @pytest.mark.parametrize(
        "name",
        ["of this package", "conditional", "several sources", "MultiHeadAttention"],
    )
    def test_estimated_states_of_a_decoder(self, name):
        model = with_weights(MODELS[name]())
        given = keras.tree.map_structure(lambda x: ARRAYS[x.name], model.input)
        # The first estimates are the states that the encoder computes.
        y = model(given)
        first = estimate_initial_state(model, given, y, steps=1, learning_rate=1e-9)
        encoder, decoder = as_encoder_and_decoder(model)
        states = [x.name for x in decoder.inputs[-len(first) :]]
        assert [name.replace("/", "_") for name in first] == states
        assert_same(list(first.values()), encoded(encoder)[-len(first) :], CLOSE)

        store, ids = StreamStore(model), list(range(BATCH))
        arrays = [ARRAYS[x.name] for x in model.inputs]
        store[ids] = {name: state + 0.5 for name, state in first.items()}
        y = store(ids, arrays)
        losses = []
        for states in (first, estimate_initial_state(model, given, y, steps=30)):
            store[ids] = states
            got, want = flat(store(ids, arrays)), flat(y)
            losses.append(sum(map(lambda a, b: np.square(a - b).mean(), got, want)))
        assert losses[1] < losses[0] / 2

    @pytest.mark.parametrize("name", ["lstm", "stacked", "several sources"])
    def test_a_stateful_copy_raises(self, name):
        with pytest.raises(ValueError, match="is given its initial state at each call"):
            as_stateful(MODELS[name](), BATCH)

    @pytest.mark.parametrize("name", ["conditional", "one encoder"])
    def test_a_stateful_copy_with_an_encoder_of_the_context(self, name):
        model = with_weights(MODELS[name]())
        stream = as_stateful(model, BATCH)
        for _ in range(2):
            got = [
                stream([arrays_at(x, slice(None), *edges) for x in model.inputs])
                for edges in ((0, 2), (2, TIMESTEPS))
            ]
            joined = np.concatenate(list(map(to_numpy, got)), 1)
            assert_same(joined, whole(model)[0], CLOSE)
            reset_states(stream)

    @pytest.mark.parametrize("fixed", [False, True])
    def test_a_target_may_have_a_fixed_number_of_timesteps(self, fixed):
        source = keras.Input((7, FEATURES), name="source")
        target = keras.Input((TIMESTEPS if fixed else None, FEATURES), name="target")
        _, h = layers.SimpleRNN(UNITS, return_state=True)(source)
        decoder = layers.SimpleRNN(UNITS, return_sequences=True, unroll=fixed)
        model = keras.Model([source, target], decoder(target, initial_state=h))
        halves = as_encoder_and_decoder(model)
        assert halves[1].inputs[0].shape == (None, None, FEATURES)
        assert_same(step_by_step(*halves, [1, 2, 3]), whole(model), CLOSE)

    def test_the_last_outputs_of_a_decoder(self):
        source, target = inputs()
        h, c = layers.Dense(UNITS)(source[:, -1]), layers.Dense(UNITS)(source[:, 0])
        last = layers.LSTM(UNITS)(target, initial_state=[h, c])
        model = with_weights(keras.Model([source, target], layers.Dense(1)(last)))
        encoder, decoder = as_encoder_and_decoder(model)
        given = encoded(encoder)
        for chunk in chunks(ARRAYS["target"], 2, 1, 3):
            outputs, *given = decoder.predict_on_batch([chunk, *given])
        assert_same(outputs, whole(model), CLOSE)

    def test_decoders_of_images(self, tmp_path):
        images = keras.Input((None, FEATURES, 1), name="source")
        target = keras.Input((None, FEATURES, 1), name="target")
        options = {"padding": "same", "return_sequences": True}
        encoder = layers.ConvLSTM1D(2, 3, padding="same", return_state=True)
        _, h, c = encoder(images)
        decoded = layers.ConvLSTM1D(2, 3, **options)(target, initial_state=[h, c])
        model = keras.Model(
            [images, target], layers.ConvLSTM1D(1, 3, **options)(decoded)
        )
        past, future = (ARRAYS[name][..., None] for name in ("source", "target"))
        want = with_weights(model)([past, future])
        halves = as_encoder_and_decoder(model)
        for half in halves:
            half.save(tmp_path / f"{half.name}.keras")
        for encoder, decoder in (halves, [loaded(tmp_path, half) for half in halves]):
            given, outputs = encoder.predict_on_batch(past), []
            for chunk in chunks(future, 1, 2, 3):
                output, *given = decoder.predict_on_batch([chunk, *given])
                outputs.append(output)
            assert_same(np.concatenate(outputs, 1), want, CLOSE)

    def test_masked_targets(self):
        source = keras.Input((None, FEATURES), name="source")
        target = keras.Input((None,), dtype="int32", name="tokens")
        state = layers.GRU(UNITS)(source)
        h = layers.Embedding(VOCABULARY, FEATURES, mask_zero=True)(target)
        options = {"return_sequences": True}
        h = layers.GRU(UNITS, **options)(h, initial_state=state)
        h = InitStateGRU(UNITS, initial_state="trainable", **options)(h)
        model = with_weights(keras.Model([source, target], h))
        encoder, decoder = as_encoder_and_decoder(model)
        given, tokens, outputs = encoded(encoder), ARRAYS["tokens"], []
        for t in range(tokens.shape[1]):
            step = [tokens[:, t : t + 1], *given]
            output, *given = decoder.predict_on_batch(step)
            outputs.append(output)
        is_read = tokens > 0
        got = np.concatenate(outputs, 1)[is_read]
        assert_same(got, whole(model)[0][is_read], CLOSE)

    def test_resets_in_a_decoder(self):
        source, target = inputs()
        reset = keras.Input((None,), dtype="bool", name="reset")
        start = Conditional(layers.Dense(UNITS))
        decoder = InitStateLSTM(UNITS, initial_state=start, return_sequences=True)
        context = layers.GRU(UNITS)(source)
        h = decoder(target, context=context, reset_mask=reset)
        model = with_weights(keras.Model([source, target, reset], h))
        marks = np.arange(TIMESTEPS) % 3 == np.arange(BATCH)[:, None]
        want = model([ARRAYS["source"], ARRAYS["target"], marks])
        encoder, decoder = as_encoder_and_decoder(model)
        constant, *states = encoded(encoder)
        outputs = []
        for t in range(TIMESTEPS):
            step = [ARRAYS["target"][:, t : t + 1], marks[:, t : t + 1], constant]
            output, *states = decoder.predict_on_batch([*step, *states])
            outputs.append(output)
        assert_same(np.concatenate(outputs, 1), want, CLOSE)

    def test_sources_by_name(self):
        static, target = keras.Input((2,), name="static"), inputs()[1]
        h = layers.GRU(UNITS, return_sequences=True)(target)
        h = h + keras.ops.expand_dims(layers.Dense(UNITS)(static), 1)
        model = with_weights(keras.Model([static, target], h))
        with pytest.raises(ValueError, match="none are sources"):
            as_encoder_and_decoder(model)
        halves = as_encoder_and_decoder(model, sources=["static"])
        assert_same(step_by_step(*halves, [1, 2, 3]), whole(model), CLOSE)

    @pytest.mark.parametrize("names", ["static", ["h"]])
    def test_wrong_names_of_sources(self, names):
        with pytest.raises(
            ValueError, match=r"names of inputs .* \['source', 'target'\]"
        ):
            as_encoder_and_decoder(lstm(), names)


def decoder_with(between):
    """A model with layers between two recurrent layers of the decoder."""
    source = keras.Input((TIMESTEPS, FEATURES), name="source")
    target = keras.Input((TIMESTEPS, FEATURES), name="target")
    encoder = layers.GRU(FEATURES, return_sequences=True, return_state=True)
    encoded, h = encoder(source)
    decoder = layers.GRU(FEATURES, return_sequences=True)
    outputs = between(decoder(target, initial_state=h), encoded)
    return keras.Model([source, target], outputs)


REFUSED = {
    "bidirectional": (
        lambda h, _: layers.Bidirectional(layers.LSTM(2), name="both")(h),
        "both .* the future of a stream",
    ),
    "go_backwards": (
        lambda h, _: layers.LSTM(2, go_backwards=True, name="back")(h),
        "back .* the future of a stream",
    ),
    "convolution": (
        lambda h, _: layers.Conv1D(3, 2, padding="causal", name="conv")(h),
        "conv .* computes a timestep from other timesteps",
    ),
    "pooling": (
        lambda h, _: layers.GlobalAveragePooling1D(name="mean")(h),
        "mean .* computes a timestep from other timesteps",
    ),
    "self-attention": (
        lambda h, _: layers.Attention(name="own")([h, h]),
        "own .* computes a timestep from other timesteps",
    ),
    "an operation": (
        lambda h, _: keras.ops.cumsum(h, axis=1),
        "cumsum.* computes a timestep from other timesteps",
    ),
    "different lengths": (
        lambda h, encoded: layers.Concatenate(name="joined")([h, encoded]),
        "joined .* a call with single timesteps raises",
    ),
    "another axis": (
        lambda h, _: layers.LSTM(2)(layers.Permute((2, 1))(h)),
        "don't have their timesteps on axis 1",
    ),
    "a state of the target": (
        lambda h, _: layers.GRU(FEATURES)(h, initial_state=layers.GRU(FEATURES)(h)),
        "the inputs .* all are sources",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_decoders_that_can_not_step(name):
    between, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        as_encoder_and_decoder(decoder_with(between))


def test_a_state_that_is_computed_from_a_target():
    between, _ = REFUSED["a state of the target"]
    with pytest.raises(ValueError, match="is computed from a target"):
        as_encoder_and_decoder(decoder_with(between), sources=["source"])


def test_a_layer_that_is_called_twice():
    def between(h, _):
        shared = layers.GRU(FEATURES, return_sequences=True, name="shared")
        return shared(shared(h))

    with pytest.raises(ValueError, match="shared is called twice"):
        as_encoder_and_decoder(decoder_with(between))
