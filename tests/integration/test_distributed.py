"""Training on several devices and machines. `replicas.py` has the functions."""

import concurrent.futures
import os
import socket
import subprocess
import sys

import pytest

from backends import BACKEND, in_a_fresh_process
from documents import DOCUMENTS, python_of


@pytest.mark.tensorflow
def test_mirrored_over_two_devices():
    in_a_fresh_process("import replicas; replicas.mirrored()")


def two_processes(function):
    """Runs a function of `replicas.py` in two processes, with two free ports."""
    with socket.socket() as first, socket.socket() as second:
        sockets = first, second
        for each in sockets:
            each.bind(("localhost", 0))
        ports = [each.getsockname()[1] for each in sockets]
    script = f"import sys, replicas; replicas.{function}(*sys.argv[1:])"
    with concurrent.futures.ThreadPoolExecutor() as pool:
        workers = [pool.submit(in_a_fresh_process, script, i, *ports) for i in range(2)]
        for each in workers:
            each.result(timeout=300)


@pytest.mark.tensorflow
def test_two_processes_with_half_of_the_data_each():
    two_processes("worker")


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has it")
def test_distributed_data_parallel_in_two_processes():
    two_processes("data_parallel_of_torch")


@pytest.mark.skipif(BACKEND != "torch", reason="only PyTorch has it")
def test_the_program_of_the_page_on_several_devices(tmp_path):
    (program,) = python_of(DOCUMENTS["docs/how-to/several-devices.md"], "torch")
    path = tmp_path / "train.py"
    learned = "model.layers[0].h0.value.value.tolist()"
    path.write_text(f"{program}\nprint(loss.item(), {learned}, flush=True)\n")
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *command, path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    # Each process has a loss of its own rows, and both have learned the same state.
    (loss, learned), (other_loss, other) = (
        line.split(" ", 1) for line in done.stdout.splitlines()
    )
    assert learned == other and loss != other_loss


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX alone")
def test_data_parallel_over_two_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    in_a_fresh_process(
        "import replicas; replicas.data_parallel()",
        environment={**os.environ, **flags},
    )
