"""How much memory training steps take."""

import os
import subprocess
import sys
from pathlib import Path

from contenders import TRAINING, make_run


def peak_bytes():
    """Returns the most memory that this process has held so far."""
    # Not `ru_maxrss`, which on Linux a process inherits from the one that started it.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # Not on Windows.

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS


def added_to_peak(name, shape, steps=3):
    """Returns by how many MiB the first training steps raise the peak of memory."""
    run = make_run(name, shape, TRAINING)
    before = peak_bytes()
    for _ in range(steps):
        run.do()
    return (peak_bytes() - before) / 2**20


def peak_memories(plan, tick):
    """Returns `{contender: MiB}`, each measured in a process of its own."""
    memories = {}
    bench = Path(__file__).with_name("bench.py")
    for name in plan.memory_names():
        command = [sys.executable, str(bench), "--peak-memory", name]
        command += ["--shapes", str(plan.memory_shape), "--device", plan.device]
        # Or glibc keeps what was freed, tens of MiB, and not the same at each run.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        result = subprocess.run(
            command, capture_output=True, text=True, check=True, env=environment
        )
        memories[name] = float(result.stdout)
        tick()
    return memories
