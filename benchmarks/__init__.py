"""The measurements, a package for each command: `python -m benchmarks.demo --help`."""

import os

# Before its import, or TensorFlow has already reported every GPU that it did not find.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
