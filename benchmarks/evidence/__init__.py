"""`make evidence`: when an initial state helps, on real sequences."""
