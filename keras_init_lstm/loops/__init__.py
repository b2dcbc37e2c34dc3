"""Loops that are faster than Keras's own."""
