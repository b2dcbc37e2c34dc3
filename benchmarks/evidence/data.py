"""Real sequences, their parts, and their metadata.

If the targets are the sequence itself, the model reads the previous target at each
timestep, and zeros at the first timestep. The first prediction then depends on the
initial state alone.
"""

import dataclasses
import sysconfig
from functools import cache
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from benchmarks.demo.writer import LEVELS
from benchmarks.evidence.characters import cut, encode, read_text


@dataclasses.dataclass
class Data:
    """Sequences, their targets and their metadata.

    Attributes:
        inputs: Array `(sequences, timesteps, features)`, or integers
            `(sequences, timesteps)`, the characters of a text.
        targets: Array `(sequences, timesteps, values)`, integers if they are classes.
        known: Dict from `"identity"`, `"features"` or `"past"` to integers
            `(sequences,)`, an array `(sequences, features)`, or one like `inputs`.
        weights: Array `(sequences, timesteps)`: 0 for padding, otherwise 1.
        last: For each target, the last known value of the same quantity, an array like
            `targets`. `None` if the targets are not numbers.
    """

    inputs: np.ndarray
    targets: np.ndarray
    known: dict = dataclasses.field(default_factory=dict)
    weights: np.ndarray | None = None
    last: np.ndarray | None = None

    def __post_init__(self):
        if self.weights is None:
            self.weights = np.ones(self.targets.shape[:2], "float32")

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, rows):
        return Data(
            self.inputs[rows],
            self.targets[rows],
            {name: array[rows] for name, array in self.known.items()},
            self.weights[rows],
            None if self.last is None else self.last[rows],
        )


def shifted(targets):
    """Returns the inputs if the targets are the sequence itself."""
    inputs = np.zeros_like(targets)
    inputs[:, 1:] = targets[:, :-1]
    return inputs


def parts(data, seed, *sizes):
    """Returns random parts of the data, one of each size."""
    order = np.random.default_rng(seed).permutation(len(data))
    ends = np.cumsum(sizes)
    assert ends[-1] <= len(data)
    return [
        data[order[end - size : end]] for end, size in zip(ends, sizes, strict=True)
    ]


@cache
def chicks():
    """The weights of chicks from hatching on, `Data` of 50 sequences of 12 days."""
    from river.datasets import ChickWeights

    rows = [(x["chick"], x["time"], x["diet"], weight) for x, weight in ChickWeights()]
    days = sorted({time for _, time, _, _ in rows})
    count = max(chick for chick, _, _, _ in rows)
    grams = np.ones((count, len(days), 1), "float32")
    weights = np.zeros((count, len(days)), "float32")
    features = np.zeros((count, 4), "float32")
    for chick, time, diet, weight in rows:
        at = chick - 1, days.index(time)
        grams[at], weights[at], features[chick - 1, diet - 1] = weight, 1, 1
    logs = np.log(grams / 41)  # the typical weight of one that has just hatched
    inputs = shifted(logs)
    return Data(inputs, logs, {"features": features}, weights, last=inputs)


def split_chicks(seed, size):
    """Returns 30 or 8 chicks to train on, 10 to choose by, and 10 for the test."""
    train, validation, test = parts(chicks(), seed, 30, 10, 10)
    return train if size == "many" else train[:8], validation, test


@cache
def days_of_power():
    """The power that Italy takes in an hour, `Data` of 1,096 days of 24 hours."""
    from aeon.datasets import load_italy_power_demand

    power, half = load_italy_power_demand()
    targets = np.swapaxes(power, 1, 2).astype("float32")
    features = np.stack([half == value for value in ("1", "2")], axis=1)
    known, inputs = {"features": features.astype("float32")}, shifted(targets)
    return Data(inputs, targets, known, last=inputs)


def split_power(seed, size):
    """Returns 256 or 32 days to train on, 128 to choose by, and 512 for the test."""
    train, validation, test = parts(days_of_power(), seed, 256, 128, 512)
    return train if size == "many" else train[:32], validation, test


@cache
def countries():
    """Fertility and life expectancy of 202 countries by year, and their regions."""
    from bokeh_sampledata.gapminder import fertility, life_expectancy, regions

    complete = fertility.notna().all(axis=1) & life_expectancy.notna().all(axis=1)
    names = fertility.index[complete]
    raw = np.stack([fertility.loc[names], life_expectancy.loc[names]], axis=-1)
    _, region = np.unique(regions.loc[names, "Group"].astype(str), return_inverse=True)
    return raw.astype("float32"), np.eye(region.max() + 1, dtype="float32")[region]


COUNTRIES = {"many": 120, "few": 24}
YEARS = 10  # of a window, and of the past before it


def split_countries(seed, size):
    """Returns windows of 1974 to 1989, of 1990 to 1999, and of 2000 to 2009."""
    raw, region = countries()
    rows = np.random.default_rng(seed).permutation(len(raw))[: COUNTRIES[size]]
    raw, region = raw[rows], region[rows]
    before = raw[:, :26]  # from 1964 on
    identity = np.arange(len(raw), dtype="int32")
    scaled = (raw - before.mean((0, 1))) / before.std((0, 1))

    def windows(first_years):
        return Data(
            np.concatenate([scaled[:, y - 1964 :][:, :YEARS, :1] for y in first_years]),
            np.concatenate([scaled[:, y - 1964 :][:, :YEARS, 1:] for y in first_years]),
            {
                "identity": np.tile(identity, len(first_years)),
                "features": np.tile(region, (len(first_years), 1)),
                "past": np.concatenate(
                    [scaled[:, y - YEARS - 1964 :][:, :YEARS] for y in first_years]
                ),
            },
            last=np.concatenate(
                [scaled[:, [y - 1 - 1964] * YEARS, 1:] for y in first_years]
            ),
        )

    return windows(range(1974, 1981)), windows([1990]), windows([2000])


FRAMES = 20  # to which longer utterances, one in seven at most, are cut


@cache
def vowels():
    """Two Japanese vowels by 9 speakers, `Data` of 640 sequences of 7 to 20 steps."""
    from aeon.datasets import load_japanese_vowels

    utterances, speakers = load_japanese_vowels()
    targets = np.zeros((len(utterances), FRAMES, 12), "float32")
    weights = np.zeros(targets.shape[:2], "float32")
    for row, utterance in enumerate(utterances):
        frames = utterance.T[:FRAMES]
        targets[row, : len(frames)] = frames
        weights[row, : len(frames)] = 1
    values = targets[weights == 1]
    targets = (targets - values.mean(0)) / values.std(0) * weights[..., None]
    known, inputs = {"identity": speakers.astype("int32") - 1}, shifted(targets)
    return Data(inputs, targets, known, weights, last=inputs)


def split_vowels(seed, size):
    """Returns utterances of the same 9 speakers: 360 or 54, 90, and 190."""
    train, validation, test = parts(vowels(), seed, 360, 90, 190)
    return train if size == "many" else train[:54], validation, test


@cache
def text():
    """The source of the standard library as integers, for training and for the test."""
    _, train, test = read_text(Path(sysconfig.get_paths()["stdlib"]))
    return encode(train, test)


CHARACTERS = 16  # of a sequence, and of the past before it


def split_text(seed, size):
    """Returns 8,192 or 512 sequences, 1,024 to choose by, and 4,096 for the test."""
    train, test = text()
    count = 8192 if size == "many" else 512

    def sequences(characters, count, seed):
        inputs, targets = cut(characters, 2 * CHARACTERS, count, seed)
        past, inputs = inputs[:, :CHARACTERS], inputs[:, CHARACTERS:]
        return Data(inputs, targets[:, CHARACTERS:, None], {"past": past})

    # Half of the files for the test are for choosing, the other half for the test.
    half = len(test) // 2
    return (
        sequences(train, count, seed),
        sequences(test[:half], 1024, seed),
        sequences(test[half:], 4096, seed),
    )


@cache
def digits():
    """Handwritten digits, `Data` of 1,797 images, read row by row."""
    loaded = load_digits()
    levels = loaded.images.astype("int32")
    scaled = levels.astype("float32") / (LEVELS - 1)
    return Data(shifted(scaled), levels, {"identity": loaded.target.astype("int32")})


def split_digits(seed, size):
    """Returns 1,200 or 150 images to train on, 200 to choose by, 397 for the test."""
    train, validation, test = parts(digits(), seed, 1200, 200, 397)
    return train if size == "many" else train[:150], validation, test


STREAMS, CHUNK = 16, 12  # a chunk is a quarter of a day


@cache
def sea():
    """The temperature of the sea at one buoy, every half hour for 13 months.

    Returns:
        What is read, the change since the half hour before, and what is predicted, the
        difference to the mean of the last 24 hours, each `(half hours,)`.
    """
    from bokeh_sampledata.sea_surface_temperature import sea_surface_temperature

    raw = sea_surface_temperature["temperature"]
    series = raw[~raw.index.duplicated()].resample("30min").asfreq().interpolate()
    day = 48
    deviation = (series - series.rolling(day).mean())[day:].to_numpy("float32")
    return series.diff()[day:].to_numpy("float32"), deviation


def split_sea(_seed, size):
    """Returns 60 % or 12 % of the series, the next 15 %, and the last 25 %.

    Each part is cut into `STREAMS` streams, and these into chunks: the rows of a batch
    are the same chunk of all streams.
    """
    inputs, targets = sea()
    length = len(inputs)
    first = 0 if size == "many" else 0.48
    bounds = [(first, 0.6), (0.6, 0.75), (0.75, 1.0)]
    scales = [values[: int(0.6 * length)].std() for values in (inputs, targets)]

    inputs, targets = inputs / scales[0], targets / scales[1]

    def chunks(begin, end):
        rows = np.arange(int(begin * length), int(end * length))
        count = len(rows) // (STREAMS * CHUNK)
        streams = rows[: STREAMS * count * CHUNK].reshape(STREAMS, count, CHUNK, 1)
        rows = streams.swapaxes(0, 1).reshape(-1, CHUNK, 1)
        # The first chunk of the series has no value before it, so it repeats its own.
        before = np.maximum(rows[:, :1] - 1, 0)
        last = np.repeat(targets[before], CHUNK, axis=1)
        return Data(inputs[rows], targets[rows], last=last)

    return [chunks(*bound) for bound in bounds]
