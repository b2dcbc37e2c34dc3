"""The compared initial states, their alternatives, and the models of both."""

import keras
import numpy as np
from keras import ops

from benchmarks import initial_states
from benchmarks.evidence.characters import VOCABULARY
from benchmarks.initial_states import STDDEV, initial_state
from keras_init_lstm import Conditional, InitStateLSTM, Sampled

# With as many weights as the kind `"past"`, as nearly as whole units allow.
PAST_FIRST, PAST_EVERY_STEP = "past input, equal weights", "past at every step"
# A description of each kind, and the metadata of a sequence that it needs.
KINDS = {
    **{kind: (meaning, None) for kind, meaning in initial_states.KINDS.items()},
    "noisy": (f"trainable, and noise of N(0, {STDDEV}\u00b2) in training", None),
    "identity": ("Conditional(Embedding) of the identity", "identity"),
    "features": ("Conditional(Dense) of the features", "features"),
    "past": ("Conditional(LSTM(return_state=True)) of the past", "past"),
    "first token": ("zeros, and a learned first timestep", None),
    "identity input": ("zeros; the identity's embedding at every step", "identity"),
    "features input": ("zeros; the features at every step", "features"),
    "past input": ("zeros; the past is read first, without a loss", "past"),
    PAST_FIRST: ("the same with more units: as many weights as `past`", "past"),
    PAST_EVERY_STEP: (
        "zeros; the whole past at every step; as many weights as `past`",
        "past",
    ),
}
NEEDS = {kind: needs for kind, (_, needs) in KINDS.items()}
LAST_VALUE = "last value"  # no model: the prediction is the last known value
STREAM_KINDS = {
    "zeros": "each chunk starts from zeros",
    "trainable": "each chunk starts from a learned state",
    "carried": "the state is carried over, from zeros at first",
    "carried, trainable": "the state is carried over, from a learned state at first",
}
EMBEDDING = 16
LAYER = "lstm"


class FirstToken(keras.layers.Layer):
    """Puts a learned timestep before the first timestep of each sequence.

    Input shape `(batch, timesteps, features)`, output shape
    `(batch, 1 + timesteps, features)`.
    """

    def build(self, input_shape):
        self.token = self.add_weight(shape=(1, 1, input_shape[-1]), name="token")

    def call(self, inputs):
        first = ops.tile(self.token, (ops.shape(inputs)[0], 1, 1))
        return ops.concatenate([first, inputs], axis=1)

    def compute_output_shape(self, input_shape):
        batch, timesteps, features = input_shape
        return batch, timesteps and timesteps + 1, features


def units_of_equal_weights(task, kind, units, data):
    """Returns the units with which a kind has most nearly as many weights as `"past"`.

    Args:
        task: The `Task`.
        kind: `PAST_FIRST` or `PAST_EVERY_STEP`.
        units: The units of `"past"`: of an LSTM that predicts, and of its encoder.
        data: `Data` with the shapes of the inputs.
    """
    past = data.known["past"]
    if past.ndim == 2:  # The embedding of characters is the same for all kinds.
        features = past_features = 2 * EMBEDDING
    else:
        features, past_features = data.inputs.shape[-1], past.shape[-1]
    outputs = data.targets.shape[-1] * max(task.levels, 1)

    def weights(units, features):
        return 4 * units * (features + units + 1) + outputs * (units + 1)

    encoder = 4 * units * (past_features + units + 1)
    wanted = weights(units, features) + encoder
    read = {
        PAST_FIRST: past_features,
        PAST_EVERY_STEP: features + past.shape[1] * past_features,
    }[kind]
    return min(range(1, 2 * units), key=lambda n: abs(weights(n, read) - wanted))


def weight_count(model):
    """Returns how many numbers of a model or layer are learned."""
    return sum(int(np.prod(v.shape)) for v in model.trainable_variables)


def build(task, kind, units, data, seed, use_fused="auto"):
    """Returns a model whose inputs are the sequences and the metadata of the kind.

    Args:
        task: The `Task`.
        kind: One of `KINDS`, or of `STREAM_KINDS` if the task is a stream.
        units: The units of the LSTM.
        data: `Data` with the shapes of the inputs.
        seed: The seed of the initial weights.
        use_fused: The argument of `InitStateLSTM`.
    """
    if kind in (PAST_FIRST, PAST_EVERY_STEP):
        units = units_of_equal_weights(task, kind, units, data)
    keras.utils.set_random_seed(seed)
    timesteps = data.inputs.shape[1]
    carried = kind.startswith("carried")
    inputs = keras.Input(
        data.inputs.shape[1:],
        batch_size=task.batch_size if carried else None,
        dtype=data.inputs.dtype,
    )
    model_inputs, sequence, call = [inputs], inputs, {}
    embed = keras.layers.Embedding(VOCABULARY, 2 * EMBEDDING)
    if data.inputs.ndim == 2:
        sequence = embed(inputs)
    known = None
    if needs := NEEDS.get(kind):
        array = data.known[needs]
        known = keras.Input(array.shape[1:], dtype=array.dtype)
        model_inputs.append(known)

    owned = initial_state(kind.removeprefix("carried, "), seed)
    if kind == "noisy":
        owned = Sampled(0.0, STDDEV, learned="mean", seed=seed)
    elif kind == "identity":
        owned = Conditional(keras.layers.Embedding(task.identities, units, "zeros"))
        call = {"context": known}
    elif kind == "features":
        owned = Conditional(keras.layers.Dense(units, kernel_initializer="zeros"))
        call = {"context": known}
    elif kind == "past":
        owned = Conditional(keras.layers.LSTM(units, return_state=True))
        call = {"context": embed(known) if data.inputs.ndim == 2 else known}
    elif kind == "first token":
        sequence = FirstToken()(sequence)
    elif kind in ("past input", PAST_FIRST):
        if data.inputs.ndim == 2:
            sequence = keras.layers.Concatenate(axis=1)([embed(known), sequence])
        else:
            # The past has features that are unknown later, where they are zero.
            missing = known.shape[-1] - sequence.shape[-1]
            padded = ops.pad(sequence, [(0, 0), (0, 0), (0, missing)])
            sequence = keras.layers.Concatenate(axis=1)([known, padded])
    elif kind in ("identity input", "features input", PAST_EVERY_STEP):
        if kind == "identity input":
            known = keras.layers.Embedding(task.identities, EMBEDDING)(known)
        elif kind == PAST_EVERY_STEP:
            past = embed(known) if data.inputs.ndim == 2 else known
            known = keras.layers.Flatten()(past)
        repeated = keras.layers.RepeatVector(timesteps)(known)
        sequence = keras.layers.Concatenate()([sequence, repeated])

    lstm = InitStateLSTM(
        units,
        initial_state=owned,
        return_sequences=True,
        stateful=carried,
        use_fused=use_fused,
        name=LAYER,
    )
    outputs = lstm(sequence, **call)[:, -timesteps:]
    values = data.targets.shape[-1]
    outputs = keras.layers.Dense(values * max(task.levels, 1))(outputs)
    if task.levels:
        outputs = keras.layers.Reshape((timesteps, values, task.levels))(outputs)
    return keras.Model(model_inputs, outputs)


def kinds_of(task):
    """Returns the kinds that the metadata of a task allow."""
    if task.stream:
        return [*STREAM_KINDS, LAST_VALUE]
    trained = [k for k, needs in NEEDS.items() if not needs or needs in task.known]
    if not task.levels:
        return [*trained, LAST_VALUE]
    # The embedding of a past of 16 characters has 512 numbers. With these at every step
    # and an equal number of weights, 64 units would become 24.
    return [kind for kind in trained if kind != PAST_EVERY_STEP]
