"""The tasks of the evidence.

In every task a model predicts a target at each timestep, from the inputs up to there.
"""

import dataclasses

from benchmarks.demo.writer import LEVELS
from benchmarks.evidence.characters import VOCABULARY
from benchmarks.evidence.data import (
    COUNTRIES,
    STREAMS,
    split_chicks,
    split_countries,
    split_digits,
    split_power,
    split_sea,
    split_text,
    split_vowels,
)


@dataclasses.dataclass
class Task:
    """Data and the length of a training.

    Attributes:
        name: The name in the tables.
        question: The target and the inputs.
        source: The source of the data, and their licence.
        loss: The loss, and what it is of.
        split: Function of a seed and of `"many"` or `"few"`, which returns the `Data`
            to train on, for validation, and for the test.
        steps: The number of steps of each training.
        batch_size: The number of sequences in a step.
        known: The metadata of a sequence: keys of `Data.known`.
        levels: Number of classes of a target, 0 if targets are numbers.
        identities: Number of identities.
        stream: Whether the sequences of a batch continue in the next batch.
    """

    name: str
    question: str
    source: str
    loss: str
    split: callable
    steps: int = 600
    batch_size: int = 32
    known: tuple = ()
    levels: int = 0
    identities: int = 0
    stream: bool = False

    @property
    def loss_name(self):
        return self.loss.partition(",")[0]


BOKEH = "package bokeh-sampledata"
TASKS = [
    Task(
        "chicks",
        "the weight of a chick at 12 days, from those before",
        "ChickWeight of R, by Crowder and Hand (1990), in river (BSD-3-Clause)",
        "squared error, of the logarithm",
        split_chicks,
        known=("features",),
        batch_size=8,
    ),
    Task(
        "power",
        "the power that a country takes in an hour of a day, from the hours before",
        "ItalyPowerDemand of the UCR archive, in aeon (BSD-3-Clause)",
        "squared error, of days scaled to a standard deviation of 1",
        split_power,
        known=("features",),
    ),
    Task(
        "countries",
        "the life expectancy of a country in 10 years, from its fertility alone",
        f"Gapminder.org (CC BY 2.0), in {BOKEH}",
        "squared error, of values scaled to a standard deviation of 1",
        split_countries,
        known=("identity", "features", "past"),
        identities=max(COUNTRIES.values()),
    ),
    Task(
        "vowels",
        "12 coefficients of the sound of a vowel, frame by frame",
        "JapaneseVowels of the UCI archive, in aeon (BSD-3-Clause)",
        "squared error, of values scaled to a standard deviation of 1, and summed",
        split_vowels,
        known=("identity",),
        identities=9,
    ),
    Task(
        "digits",
        "a row of 8 pixels of a handwritten digit, from the rows above",
        "Optical Recognition of Handwritten Digits of the UCI archive, in scikit-learn "
        "(BSD-3-Clause)",
        "cross-entropy, in nats per row",
        split_digits,
        known=("identity",),
        levels=LEVELS,
        identities=10,
    ),
    Task(
        "text",
        "the next character of source code cut at random places, for 16 characters",
        "the standard library of Python (PSF-2.0)",
        "cross-entropy, in nats per character",
        split_text,
        known=("past",),
        levels=VOCABULARY,
    ),
    Task(
        "sea",
        "how far the sea is from its mean of 24 hours, in chunks of 6 hours",
        f"NERACOOS (free to use and redistribute), in {BOKEH}",
        "squared error, of values scaled to a standard deviation of 1",
        split_sea,
        batch_size=STREAMS,
        stream=True,
    ),
]
