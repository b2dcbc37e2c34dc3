"""The compared initial states, their alternatives, and the models of both."""

import keras
from keras import ops

from benchmarks import initial_states
from benchmarks.evidence.characters import VOCABULARY
from benchmarks.initial_states import STDDEV, initial_state
from keras_init_lstm import Conditional, InitStateLSTM, Sampled

# A description of each kind, and the metadata of a sequence that it needs.
KINDS = {
    **{kind: (meaning, None) for kind, meaning in initial_states.KINDS.items()},
    "noisy": (f"learned, one for all, and N(0, {STDDEV}\u00b2) in training", None),
    "identity": ("Conditional(Embedding) of the identity", "identity"),
    "features": ("Conditional(Dense) of the features", "features"),
    "past": ("the final states of an encoder of the past", "past"),
    "first token": ("zeros, and a learned first timestep", None),
    "identity input": ("zeros; the identity's embedding at every step", "identity"),
    "features input": ("zeros; the features at every step", "features"),
    "past input": ("zeros; the past is read first, without a loss", "past"),
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
        owned = Sampled(0.0, STDDEV, learned=True, seed=seed)
    elif kind == "identity":
        owned = Conditional(keras.layers.Embedding(task.identities, units, "zeros"))
        call = {"context": known}
    elif kind == "features":
        owned = Conditional(keras.layers.Dense(units, kernel_initializer="zeros"))
        call = {"context": known}
    elif kind == "past":
        owned = None
        past = embed(known) if data.inputs.ndim == 2 else known
        _, *states = keras.layers.LSTM(units, return_state=True, name="encoder")(past)
        call = {"initial_state": states}
    elif kind == "first token":
        sequence = FirstToken()(sequence)
    elif kind == "past input":
        if data.inputs.ndim == 2:
            sequence = keras.layers.Concatenate(axis=1)([embed(known), sequence])
        else:
            # The past has features that are unknown later, where they are zero.
            missing = known.shape[-1] - sequence.shape[-1]
            padded = ops.pad(sequence, [(0, 0), (0, 0), (0, missing)])
            sequence = keras.layers.Concatenate(axis=1)([known, padded])
    elif kind in ("identity input", "features input"):
        if kind == "identity input":
            known = keras.layers.Embedding(task.identities, EMBEDDING)(known)
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
        return list(STREAM_KINDS)
    trained = [k for k, needs in NEEDS.items() if not needs or needs in task.known]
    return trained if task.levels else [*trained, LAST_VALUE]
