"""The cases that are measured on each backend, and their measurement."""

import importlib
from typing import NamedTuple

import keras
import numpy as np

from benchmarks.speed.contenders import (
    BASELINE,
    DEFAULT,
    FIT,
    INFERENCE,
    LARGE,
    LONG,
    MIDDLING,
    TINY,
    TRAINING,
    make_layer,
)
from benchmarks.speed.fit import fit_run, fit_steps
from benchmarks.speed.timing import MIN_SECONDS, ratio, timed_case

BACKEND = importlib.import_module(
    f"benchmarks.speed.backends.{keras.backend.backend()}"
)
SHAPES = (TINY, MIDDLING, LONG, LARGE)
NATIVE = "native"


class Case(NamedTuple):
    """A cell, an action and the masks of the call."""

    cell: str  # of CELLS
    action: str  # "inference", "training step" or "fit"
    masks: str = ""  # or "mask" or "reset_mask"

    def __str__(self):
        return ", ".join(filter(None, (self.cell, self.action, self.masks)))


CASES = tuple(
    Case(cell, mode.action, masks)
    for cell in ("LSTM", "GRU", "SimpleRNN")
    for masks in ("", "mask", "reset_mask")
    for mode in (INFERENCE, TRAINING, FIT)
    if not masks or mode != FIT
)


def draw_masks(shape, masks, seed=0):
    """Returns the keyword arguments of a call.

    A quarter of the timesteps are masked, or one in sixteen is preceded by a reset.
    They are drawn independently.
    """
    drawn = np.random.default_rng(seed).random((shape.batch, shape.time))
    return {
        "": {},
        "mask": {"mask": drawn >= 1 / 4},
        "reset_mask": {"reset_mask": drawn < 1 / 16},
    }[masks]


def measure_all(cases, shapes, rounds, seed=0, **seconds):
    """Yields each case of each shape as it goes into the JSON file.

    Args:
        cases: The cases; the `fit` of a cell follows its training step.
        shapes: The sizes of the batches and of the layers.
        rounds: The largest number of rounds.
        seed: The seed of the data, the weights and the order.
        **seconds: As in `measure()`.
    """
    training = None
    for shape in shapes:
        for case in cases:
            training = measure(case, shape, rounds, training, seed, **seconds)
            yield training


def measure(
    case, shape, rounds, last=None, seed=0, min_seconds=MIN_SECONDS, fit_seconds=0.3
):
    """Returns a case as it goes into the JSON file, with the times of each round.

    The times are in seconds for a call, or a step of `fit`. Keras's layer and the
    native layer do not support resets, and the native layer does not support masks:
    they run without.

    Args:
        case: The case.
        shape: The sizes of a batch and of the layer.
        rounds: The largest number of rounds.
        last: The measured training step of the same shape, for the steps of a `fit`.
        seed: The seed of the data, the weights and the order.
        min_seconds: The least time of one timing of Keras's layer.
        fit_seconds: The time of all steps of a `fit` of Keras's layer.
    """
    rng = np.random.default_rng(seed)
    masks = draw_masks(shape, case.masks, seed)
    is_fit = case.action == FIT.action
    steps = fit_steps(last, fit_seconds) if is_fit else 1
    x, y = (
        rng.standard_normal((shape.batch * steps, shape.time, size), "float32")
        for size in (shape.features, 1)
    )
    runs = {}
    for name in (BASELINE, DEFAULT):
        keras.utils.set_random_seed(seed)
        layer = make_layer(name, shape.units, case.cell, return_sequences=True)
        if is_fit:
            runs[name] = fit_run(layer, x, y, shape.batch)
            continue
        layer.build(x.shape)
        knows = name == DEFAULT or "reset_mask" not in masks
        runs[name] = BACKEND.make_run(layer, case.action, x, **(masks if knows else {}))
    mode = INFERENCE._replace(action=case.action, cell=case.cell)
    native = BACKEND.native_run(shape, mode, x, y)
    if native is not None:
        runs[NATIVE] = native
    found = {
        "case": str(case),
        "shape": list(shape),
        **timed_case(runs, rounds, steps, seed, min_seconds),
        "kernels": {
            name: BACKEND.kernels(run) for name, run in runs.items() if not is_fit
        },
    }
    if case.action == TRAINING.action and hasattr(BACKEND, "peak_bytes"):
        found["peak_bytes"] = {
            name: BACKEND.peak_bytes(run) for name, run in runs.items()
        }
    times = found["seconds"]
    found["ratios"] = {
        name: ratio(times[name], times[DEFAULT]) for name in times if name != DEFAULT
    }
    # The models of this case would slow down the next.
    del runs, native
    keras.backend.clear_session()
    return found
