"""Adapts a trained model to a new speaker, by all or a few of its weights."""

import dataclasses

import numpy as np

from benchmarks.evidence.data import parts, vowels
from benchmarks.evidence.low_rank import LowRank
from benchmarks.evidence.models import LAYER, weight_count
from benchmarks.evidence.trainer import Trainer, mean
from keras_init_lstm.adaptation import train_only_initial_state

ADAPTATION = "adaptation"  # the name of this task
NOTHING, STATE, ALL = "no adaptation", "initial state alone", "all weights"
RANKS = {f"adapters of rank {rank}": rank for rank in (1, 4)}
METHODS = {
    NOTHING: "the initial state of unknown speakers, as it was learned",
    STATE: "train_only_initial_state: one initial state for the new speaker",
    **{
        name: f"kernel + a @ b of rank {rank}, for both kernels of the LSTM"
        for name, rank in RANKS.items()
    },
    ALL: "all weights and the initial state",
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


def initial_state_alone(model):
    """Freezes all of a model except its initial state, and returns it."""
    train_only_initial_state(model)
    return model


def low_rank(rank):
    """Returns a function that returns a model with adapters of a rank."""
    return lambda model: LowRank(model, model.get_layer(LAYER), rank)


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
        ways = {
            STATE: initial_state_alone,
            **{name: low_rank(rank) for name, rank in RANKS.items()},
            ALL: None,
        }
        self._adapted = {
            name: Trainer(task, "trainable", units, train, use_fused, adapted)
            for name, adapted in ways.items()
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

    def weights(self, method):
        """Returns how many numbers a method changes."""
        return 0 if method == NOTHING else weight_count(self._adapted[method].trained)

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
        if method in RANKS:
            trainer.trained.restart(seed)
        if method != NOTHING:
            known = self._speaker[np.arange(examples)]
            for _ in trainer.passes(known, seed, rate, STEPS):
                pass
        test = self._speaker[np.arange(HELD_BACK, len(self._speaker))]
        return mean(trainer.losses(test), test)
