"""The machine that a benchmark runs on, and the memory that its process takes."""

import os
import platform
from importlib import metadata
from pathlib import Path


def cores():
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def machine():
    """Returns what the times depend on."""
    info = Path("/proc/cpuinfo")
    models = [
        text.partition(":")[2].strip()
        for text in (info.read_text().splitlines() if info.exists() else ())
        if text.startswith("model name")
    ]
    return {
        "cores": cores(),
        "cpu": (models or [platform.processor() or platform.machine()])[0],
        "gpus": gpus(),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("tensorflow", "keras", "torch", "jax")},
    }


def version(package):
    """Returns the version of an installed package, or `None`."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def gpus():
    """Returns the names of the GPUs that the backend of Keras sees."""
    # Imported here, as `cores()` and `peak_bytes()` need neither.
    import keras

    if keras.backend.backend() == "torch":
        import torch

        return list(map(torch.cuda.get_device_name, range(torch.cuda.device_count())))
    if keras.backend.backend() == "jax":
        import jax

        return [d.device_kind for d in jax.devices() if d.platform == "gpu"]
    import tensorflow as tf

    return [
        tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
        for gpu in tf.config.get_visible_devices("GPU")
    ]


def peak_bytes():
    """Returns the most memory that this process has held so far."""
    # Not `ru_maxrss`: on Linux a process inherits it from the one that started it.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # Not on Windows.

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
