"""The layers on each backend, compared with the backend's native layer."""
