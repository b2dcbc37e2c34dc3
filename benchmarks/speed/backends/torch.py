"""Calls of layers on PyTorch, and of the layers of `torch.nn`."""

import itertools

import torch

from benchmarks.machine import cores
from benchmarks.speed.timing import Run
from benchmarks.speed.torch_layer import torch_run

NATIVE = "torch.nn"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# The functions of PyTorch behind its recurrent layers.
_FUNCTIONS = ("_rnn", "lstm", "gru", "rnn_")

torch.set_num_threads(cores())


def device():
    """Returns "GPU" or "CPU"."""
    return "GPU" if DEVICE == "cuda" else "CPU"


def make_run(layer, action, x, **masks):
    """Returns the run of a call of a built layer, in training with all gradients."""
    x = torch.from_numpy(x).to(DEVICE)
    masks = {name: torch.from_numpy(masks[name]).to(DEVICE) for name in masks}

    def infer():
        with torch.no_grad():
            layer(x, **masks)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    def train():
        layer.zero_grad(set_to_none=True)
        loss = layer(x, training=True, **masks).square().sum()
        loss.backward()
        return loss.item()

    return Run(infer if action == "inference" else train)


def native_run(shape, mode, x, y):
    """Returns the run of the layer of `torch.nn` with learned initial states."""
    return torch_run(shape, mode, x, y, DEVICE)


def kernels(run):
    """Returns the functions and kernels that ran the sequences, from a profile."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if DEVICE == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run.do()
    names = {event.key for event in profile.key_averages()}
    return sorted(
        name.removeprefix("aten::")
        for name in names
        if any(part in name.lower() for part in _FUNCTIONS)
    )


def peak_bytes(run):
    """Returns the peak of the memory of all tensors that a run creates."""
    run.do()  # The first call of a kernel may allocate buffers that stay.
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run.do()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(profile_memory=True) as profile:
        run.do()
    changes = (
        event.nbytes()
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return max(itertools.accumulate(changes, initial=0))
