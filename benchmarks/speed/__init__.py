"""`make bench`: speed, traces and memory, compared with Keras and PyTorch."""
