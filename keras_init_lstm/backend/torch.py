"""PyTorch: it does by itself all that layers ask for."""

from typing import Any

import torch

from keras_init_lstm.backend.base import Backend


class _Torch(Backend):
    def random_state(self) -> Any:
        states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        return [state.tolist() for state in states]

    def set_random_state(self, state: Any) -> None:
        cpu, *cuda = [torch.tensor(numbers, dtype=torch.uint8) for numbers in state]
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)


backend = _Torch()
