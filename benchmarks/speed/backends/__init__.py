"""The layers on each backend, next to its own native layer."""
