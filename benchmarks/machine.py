"""The machine that a benchmark runs on."""

import os
import platform
from pathlib import Path

import keras
import tensorflow as tf

from contenders import torch


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
        "gpus": [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.get_visible_devices("GPU")
        ],
        "system": platform.platform(),
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
        "keras": keras.__version__,
        "torch": torch and torch.__version__,
    }
