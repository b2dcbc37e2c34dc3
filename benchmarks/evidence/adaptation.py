"""Adapts the initial state or all weights of a trained model to a new speaker."""

import dataclasses

import numpy as np

from benchmarks.evidence.data import parts, vowels
from benchmarks.evidence.models import LAYER
from benchmarks.evidence.trainer import Trainer, mean
from keras_init_lstm.adaptation import train_only_initial_state

ADAPTATION = "adaptation"  # the name of this task
NOTHING, START, ALL = "nothing", "start alone", "all weights"
METHODS = {
    NOTHING: "the start of unknown speakers, as it was learned",
    START: "train_only_initial_state: one start for the new speaker",
    ALL: "all weights and the start",
}
HELD_BACK = 32  # utterances of the new speaker to adapt by; the others are the test
STEPS = 100
UNKNOWN = 0  # the identity of speakers that the model does not know


def split(seed):
    """Returns utterances of 8 speakers in two parts, and the utterances of a ninth."""
    data = vowels()
    new = data.known["identity"] == seed % 9
    others = data[np.flatnonzero(~new)]
    others.known["identity"] += 1
    count = len(others)
    train, validation = parts(others, seed, count - 80, 80)
    hidden = np.random.default_rng(seed).random(len(train)) < 0.1
    train.known["identity"][hidden] = UNKNOWN
    (speaker,) = parts(data[np.flatnonzero(new)], seed, new.sum())
    return train, validation, speaker


class Adaptation:
    """A trained model, and the trainers that adapt it.

    Args:
        task: The `Task` of the vowels.
        units: The units of the LSTM.
        rates: The learning rates from which the rate of the model is chosen.
        use_fused: The argument of `InitStateLSTM`.
    """

    def __init__(self, task, units, rates, use_fused):
        train, _, _ = split(0)
        task = dataclasses.replace(task, identities=1 + task.identities)
        self._rates = rates
        self._base = Trainer(task, "identity", units, train, use_fused)
        self._adapted = {
            START: Trainer(
                task, "trainable", units, train, use_fused, train_only_initial_state
            ),
            ALL: Trainer(task, "trainable", units, train, use_fused),
        }

    def meet(self, seed, steps):
        """Trains the model on all speakers except one, who is the new speaker."""
        train, validation, self._speaker = split(seed)
        lowest = np.inf
        for rate in self._rates:
            loss = self._base.fit(train, validation, seed, rate, steps)
            if loss < lowest:
                lowest, weights = loss, self._base.model.get_weights()
        self._base.model.set_weights(weights)

    def loss(self, method, examples, rate, seed):
        """Adapts a copy of the model, and returns its mean loss on other utterances."""
        trainer = self._adapted.get(method, self._adapted[ALL])
        base, model = self._base.model, trainer.model
        lstm, adapted = (m.get_layer(LAYER) for m in (base, model))
        adapted.cell.set_weights(lstm.cell.get_weights())
        adapted.assign_initial_state(
            lstm.get_initial_state(1, context=np.array([UNKNOWN])), reduction="mean"
        )
        model.layers[-1].set_weights(base.layers[-1].get_weights())
        if method != NOTHING:
            known = self._speaker[np.arange(examples)]
            for _ in trainer.passes(known, seed, rate, STEPS):
                pass
        test = self._speaker[np.arange(HELD_BACK, len(self._speaker))]
        return mean(trainer.losses(test), test)
