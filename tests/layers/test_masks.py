"""The implicit mask from layer to layer, as the installed Keras passes it on."""

import warnings

import keras
import numpy as np
import pytest
from keras import layers

from keras_init_lstm import (
    Conditional,
    InitStateBidirectional,
    InitStateGRU,
    InitStateLSTM,
    with_initial_state,
)
from keras_init_lstm._keras import rnn_hands_mask_on
from keras_init_lstm.streams import as_stateful
from oracles import assert_same

TOKENS = np.array([[1, 2, 0, 0], [2, 0, 0, 0], [1, 1, 2, 1]])
CONTEXT = np.ones((3, 2), "float32")
WARNING = "does not support masking and will therefore destroy the mask"


def embedding():
    return layers.Embedding(3, 2, mask_zero=True)


def recurrent(cls=InitStateLSTM, **kwargs):
    return cls(2, return_sequences=True, **kwargs)


def sequential(first, second):
    return keras.Sequential([embedding(), first, second])(TOKENS)


def functional(first, second):
    tokens = keras.Input((4,), dtype="int32")
    return keras.Model(tokens, second(first(embedding()(tokens))))(TOKENS)


def subclassed(first, second):
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.parts = [embedding(), first, second]

        def call(self, x):
            for part in self.parts:
                x = part(x)
            return x

    return Model()(TOKENS)


def called(first, second):
    return second(first(embedding()(TOKENS)))


def with_states(first, second):
    states = [np.zeros((3, 2), "float32")] * 2
    embedded = embedding()(TOKENS)
    return second(first(embedded, initial_state=states, mask=TOKENS != 0))


def with_context(first, second):
    return second(first(embedding()(TOKENS), context=CONTEXT))


def with_reset_mask(first, second):
    return second(first(embedding()(TOKENS), reset_mask=TOKENS == 2))


def conditional():
    return recurrent(initial_state=Conditional(layers.Dense(2)))


WAYS = {
    "Sequential": (sequential, recurrent),
    "Functional": (functional, recurrent),
    "subclassed": (subclassed, recurrent),
    "called": (called, recurrent),
    "with states": (with_states, recurrent),
    "with a context": (with_context, conditional),
    "with a reset mask": (with_reset_mask, recurrent),
    "Bidirectional": (functional, lambda: layers.Bidirectional(recurrent())),
    "InitStateBidirectional": (
        functional,
        lambda: InitStateBidirectional(recurrent(InitStateGRU)),
    ),
    "both directions with a context": (
        with_context,
        lambda: InitStateBidirectional(conditional()),
    ),
    "both directions with a reset mask": (
        with_reset_mask,
        lambda: InitStateBidirectional(recurrent()),
    ),
}


class TestPassedOnByKeras:
    @pytest.mark.parametrize("way", WAYS)
    def test_no_mask_is_lost_silently(self, way):
        """A layer that does not pass its mask on warns, with its name."""
        call, make = WAYS[way]
        first, second = make(), recurrent()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call(first, second)
        lost = [str(w.message) for w in caught if WARNING in str(w.message)]
        of_first_layer = [text for text in lost if f"'{first.name}'" in text]
        assert bool(of_first_layer) == (not rnn_hands_mask_on())
        # The second layer gets no mask, and must not warn.
        assert not any(f"'{second.name}'" in text for text in lost)

    @pytest.mark.filterwarnings(f"ignore:.*{WARNING}")
    def test_the_second_layer_equals_the_layer_of_keras(self):
        tokens = keras.Input((4,), dtype="int32")
        first, second = recurrent(layers.LSTM), recurrent(layers.GRU)
        model = keras.Model(tokens, second(first(embedding()(tokens))))
        assert_same(with_initial_state(model, "trainable")(TOKENS), model(TOKENS))


@pytest.mark.filterwarnings(f"ignore:.*{WARNING}")
class TestPassedOnByTheUser:
    """The second layer then skips the padding with every version of Keras."""

    @pytest.fixture(params=["mask=", "supports_masking"])
    def model(self, request):
        tokens = keras.Input((4,), dtype="int32")
        embed, first, second = embedding(), recurrent(), recurrent(layers.GRU)
        if request.param == "mask=":
            mask = embed.compute_mask(tokens)
            outputs = second(first(embed(tokens), mask=mask), mask=mask)
            return keras.Model(tokens, outputs)
        first.supports_masking = True
        return keras.Model(tokens, second(first(embed(tokens))))

    def test_it_reaches_the_second_layer(self, model):
        first, second = (x for x in model.layers if isinstance(x, layers.RNN))
        embed = next(x for x in model.layers if isinstance(x, layers.Embedding))
        mask = TOKENS != 0
        want = second(first(keras.ops.copy(embed(TOKENS)), mask=mask), mask=mask)
        assert_same(model(TOKENS), want)

    def test_a_file_keeps_the_mask(self, model, tmp_path):
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        pairs = zip(model.layers, loaded.layers, strict=True)
        for layer, loaded_layer in pairs:  # A file does not hold `supports_masking`.
            loaded_layer.supports_masking = layer.supports_masking
        assert_same(loaded(TOKENS), model(TOKENS))

    def test_copies_keep_it(self, model):
        adopted = with_initial_state(model, "trainable")
        assert_same(adopted(TOKENS), model(TOKENS))
        assert_same(as_stateful(adopted, 3)(TOKENS), model(TOKENS))


@pytest.mark.parametrize("passes_mask_on", [True, False])
@pytest.mark.filterwarnings(f"ignore:.*{WARNING}")
def test_from_keras_keeps_supports_masking(passes_mask_on):
    lstm = recurrent(layers.LSTM)
    lstm.supports_masking = passes_mask_on
    layer = InitStateLSTM.from_keras(lstm)
    assert layer.supports_masking == passes_mask_on
