"""The PyTorch backend."""

import sys
from collections.abc import Collection
from types import CodeType
from typing import Any

import keras
import torch

from keras_init_lstm._keras import ReplacedVariable, exports_any_length
from keras_init_lstm.backend.base import Backend, called_by

_TRACERS = ("torch.export.", "torch.fx.experimental.proxy_tensor", "torch.jit._trace")


# Only private names of PyTorch tell these three facts. If a name is missing, the
# functions return the value for an ordinary call.


def _is_fake(value: Any) -> bool:
    try:
        from torch._subclasses import FakeTensor
    except ImportError:
        return False
    return isinstance(value, FakeTensor)


def _is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether a transform of `torch.func` has wrapped the tensor."""
    functorch = getattr(torch._C, "_functorch", None)
    is_wrapped = getattr(functorch, "is_functorch_wrapped_tensor", None)
    return is_wrapped is not None and is_wrapped(tensor)


def _backward_pass() -> int:
    """Returns the number of the current backward pass, or -1."""
    graph_task_id = getattr(torch._C, "_current_graph_task_id", None)
    return -1 if graph_task_id is None else graph_task_id()


class _Variable(ReplacedVariable):
    def copied(self, value: torch.Tensor) -> torch.Tensor:
        # Autograd can't use a tensor that was created in inference mode.
        with torch.inference_mode(False):
            return value.detach().clone()


class _Torch(Backend):
    Variable = _Variable

    def as_tensor(self, value: Any) -> torch.Tensor:
        # `keras.ops.convert_to_tensor()` takes as long as a kernel for a tiny batch.
        value = value.value if isinstance(value, keras.Variable) else value
        return value if isinstance(value, torch.Tensor) else super().as_tensor(value)

    def only_traces(self, value: Any) -> bool:
        if torch.compiler.is_dynamo_compiling():
            # Code that `torch.compile` compiles assigns the state when it runs.
            return bool(torch.compiler.is_exporting())
        return (
            # `torch.jit.trace` runs the call again to check the trace. Only the call
            # stack shows this.
            called_by(*_TRACERS)
            or _is_fake(value)
            or (torch.is_tensor(value) and _is_wrapped(value))
        )

    def recomputes(self) -> bool:
        # Checkpointing calls the layer within a backward pass. Compiled code does not:
        # it recomputes from saved tensors.
        return not torch.compiler.is_compiling() and _backward_pass() != -1

    def is_called_by(self, functions: Collection[CodeType]) -> bool:
        # A compiler runs no frames to look at. Return True, after which no kernel runs
        # that would ignore an initial state.
        return torch.compiler.is_compiling() or sys._getframe(2).f_code in functions

    def replica_id(self) -> int:
        # `DistributedDataParallel` gives each process the seeds of the first one.
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return distributed.get_rank()
        return 0

    def check_length_is_traced(self, name: str) -> None:
        # A trace of a Python loop has a fixed number of timesteps.
        is_tracing = not torch.compiler.is_compiling() and torch.jit.is_tracing()
        if is_tracing and exports_any_length():
            raise ValueError(
                f"The layer {name} runs Keras's loop in this export. PyTorch traces it "
                "for one timestep, and the file would be wrong for more. Expected "
                "a known number of timesteps: export with an `input_signature` such as "
                '`[keras.InputSpec(shape=(None, 12, 3), dtype="float32")]`. Received: '
                "an input with unknown dimensions after the first"
            )

    def traces_for_onnx(self) -> bool:
        # A compiler runs no frames to look at.
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
