"""The kinds of initial state without a context that the trainings compare."""

import keras

from keras_init_lstm import Fixed, Sampled

STDDEV = 0.1
KINDS = {
    "zeros": "zeros, as in keras.layers.LSTM",
    "fixed": f"drawn once for each seed from N(0, {STDDEV}\u00b2), then kept",
    "sampled": f"drawn anew from N(0, {STDDEV}\u00b2) in training, its mean 0 in test",
    "trainable": "learned with the other weights, one for all sequences",
}


def initial_state(kind, seed):
    """Returns the argument `initial_state` for one of `KINDS`, zeros for any other."""
    # Give every draw its own seed. A seed from Keras's global generator would change
    # all later draws, and the other weights with them.
    if kind == "fixed":
        seeds = 2 * seed, 2 * seed + 1
        return [Fixed(keras.initializers.RandomNormal(0.0, STDDEV, s)) for s in seeds]
    if kind == "sampled":
        return Sampled(0.0, STDDEV, seed=seed)
    return "trainable" if kind == "trainable" else "zeros"
