"""What a run of the benchmark measures, and how thoroughly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from benchmarks.speed.contenders import (
    BASELINE,
    CELLS,
    CONTENDERS,
    DEFAULT,
    FAMILY_MODES,
    FEW,
    FIT,
    FUSED,
    GRID,
    INFERENCE,
    LARGE,
    LAYERS,
    LONG,
    MIDDLING,
    TINY,
    TORCH,
    TORCH_LOOP,
    TRAINING,
    Mode,
    Shape,
    fastest,
)
from benchmarks.speed.fresh_process import COMPILER
from benchmarks.speed.timing import MIN_SECONDS

EXTRA_MODES = tuple(
    Mode(action, way, sequences)
    for way, sequences in (("eager", True), ("function", False))
    for action in ("inference", "training step")
)
# So small that nearly all memory belongs to the graph and the compiler.
SMALL = Shape(1, 8, 1, 1)
BUCKET_SHAPE = Shape(32, 80, 16, 64)
GROWTH_SHAPE = Shape(32, 50, 32, 128)
GROWTH = {
    "batch": (8, 32, 128),
    "time": (25, 100, 400),
    "units": (32, 128, 512),
}


@dataclass(frozen=True)
class Plan:
    """What is measured; by default all of it."""

    seed: int = 0  # of data, weights and order
    device: str = "best"  # or "cpu" or "gpu"
    contenders: Sequence[str] = CONTENDERS  # in the modes that have them
    rounds: int = 15  # of each case at most
    min_seconds: float = MIN_SECONDS  # of one timing
    fit_seconds: float = 0.3  # of the steps in one `fit`

    shapes: Sequence[Shape] = GRID
    extra_shapes: Sequence[Shape] = (TINY, MIDDLING, LARGE)
    extra_modes: Sequence[Mode] = EXTRA_MODES  # for the shapes in `extra_shapes`
    family_shapes: Sequence[Shape] = (TINY, MIDDLING, LARGE, LONG)
    family_modes: Sequence[Mode] = FAMILY_MODES  # for the shapes in `family_shapes`
    # The modes in which all layers take part: each costs a compilation and its rounds.
    full_modes: Sequence[Mode] = (INFERENCE, TRAINING)

    traced_shapes: int = 50
    bucket_contenders: Sequence[str] = (BASELINE, "trainable", DEFAULT, FUSED)
    bucket_shape: Shape = BUCKET_SHAPE  # of the longest batches
    bucket_repetitions: int = 3
    memory_shape: Shape = GRID[5]
    memory_contenders: Sequence[str] = (BASELINE, "trainable", DEFAULT, TORCH)
    small_shape: Shape = SMALL
    small_contenders: Sequence[str] = (BASELINE, DEFAULT, COMPILER)
    growth: Mapping[str, Sequence[int]] = field(default_factory=GROWTH.copy)
    growth_shape: Shape = GROWTH_SHAPE
    growth_rounds: int = 7

    def quick(self):
        """Returns a plan of few shapes and rounds, without extras."""
        return replace(
            self,
            rounds=5,
            shapes=(TINY, MIDDLING),
            extra_shapes=(),
            family_shapes=(),
            full_modes=(),
            bucket_contenders=(),
            memory_contenders=(),
            small_contenders=(),
            growth={},
        )

    def modes(self, shape):
        """Returns the modes in which a shape is measured."""
        extra = self.extra_modes if shape in self.extra_shapes else ()
        family = self.family_modes if shape in self.family_shapes else ()
        return [INFERENCE, TRAINING, FIT, *extra, *family]

    def names(self, mode):
        """Returns the contenders that take part in a mode, the baseline first."""
        names = list(FEW)
        if mode.cell != "LSTM":  # The LSTM alone shows what owning the state costs.
            names = list(dict.fromkeys([BASELINE, DEFAULT, fastest(mode)]))
        elif mode in self.full_modes:
            names = list(LAYERS)
        elif mode == INFERENCE:
            names.append(FUSED)
        if mode.way == "function" and CELLS[mode.cell].torch:
            names.append(TORCH_LOOP if mode == FIT else TORCH)
        return self.only_contenders(names)

    def memory_cases(self):
        """Returns the pairs of a contender and a shape whose memory is measured."""
        names = self.only_contenders(self.memory_contenders)
        return [(name, self.memory_shape) for name in names] + [
            (name, self.small_shape) for name in self.small_contenders
        ]

    def only_contenders(self, names):
        """Returns the names that are contenders of this plan."""
        return [name for name in names if name in self.contenders]
