"""PyTorch: its operations do nearly all that layers ask for."""

import sys
from collections.abc import Collection
from types import CodeType
from typing import Any

import torch

from keras_init_lstm._keras import ReplacedVariable, exports_any_length
from keras_init_lstm.backend.base import Backend, called_by

_TRACERS = ("torch.export.", "torch.fx.experimental.proxy_tensor", "torch.jit._trace")


# PyTorch tells this only through private names. Where one is missing, these functions
# answer as for a usual call.


def _is_fake(value: Any) -> bool:
    try:
        from torch._subclasses import FakeTensor
    except ImportError:
        return False
    return isinstance(value, FakeTensor)


def _is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a function of `torch.func` hands the tensor to the call."""
    functorch = getattr(torch._C, "_functorch", None)
    ask = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return ask is not None and ask(tensor)


def _backward_pass() -> int:
    """The number of the backward pass that runs, or -1."""
    ask = getattr(torch._C, "_current_graph_task_id", None)
    return -1 if ask is None else ask()


class _Variable(ReplacedVariable):
    def copied(self, value: torch.Tensor) -> torch.Tensor:
        # What is made in the inference mode of PyTorch can't be trained on later.
        with torch.inference_mode(False):
            return value.detach().clone()


class _Torch(Backend):
    Variable = _Variable

    def only_traces(self, value: Any) -> bool:
        if torch.compiler.is_dynamo_compiling():
            # What `torch.compile` assigns is carried when the code runs.
            return bool(torch.compiler.is_exporting())
        return (
            # `torch.jit.trace` also runs the call to compare, and nothing else says so.
            called_by(*_TRACERS)
            or _is_fake(value)
            or (torch.is_tensor(value) and _is_wrapped(value))
        )

    def recomputes(self) -> bool:
        # A backward pass runs, and within it this call. The compiler does otherwise: it
        # computes again from what it has kept, and calls nothing.
        return not torch.compiler.is_compiling() and _backward_pass() != -1

    def is_called_by(self, functions: Collection[CodeType]) -> bool:
        # A compiler runs no frames that could be looked at. It is answered with yes,
        # after which no kernel is taken that would drop something.
        return torch.compiler.is_compiling() or sys._getframe(2).f_code in functions

    def replica_id(self) -> int:
        # `DistributedDataParallel` gives each process the seeds of the first one.
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank()
        return 0

    def check_length_is_traced(self, name: str) -> None:
        # A trace keeps as many timesteps of a loop in Python as it has seen.
        is_tracing = not torch.compiler.is_compiling() and torch.jit.is_tracing()
        if is_tracing and exports_any_length():
            raise ValueError(
                f"The layer {name} runs Keras's loop here. PyTorch traces one timestep "
                "of it, and the file would be wrong for any other number. Expected "
                "a known number of timesteps: export with an `input_signature` such as "
                '`[keras.InputSpec(shape=(None, 12, 3), dtype="float32")]`. Received: '
                "an input with unknown dimensions after the first"
            )

    def traces_for_onnx(self) -> bool:
        # A compiler runs no frames that could be looked at.
        if torch.compiler.is_dynamo_compiling():
            return torch.onnx.is_in_onnx_export()
        return torch.onnx.is_in_onnx_export() or super().traces_for_onnx()

    def random_state(self) -> Any:
        states = [torch.get_rng_state(), *torch.cuda.get_rng_state_all()]
        return [state.tolist() for state in states]

    def set_random_state(self, state: Any) -> None:
        cpu, *cuda = [torch.tensor(numbers, dtype=torch.uint8) for numbers in state]
        torch.set_rng_state(cpu)
        torch.cuda.set_rng_state_all(cuda)


backend = _Torch()
