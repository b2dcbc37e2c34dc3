"""Training on several devices and machines. `replicas.py` has the functions."""

import concurrent.futures
import json
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
            each.result()


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
    # Without `os._exit()`, PyTorch 2.13 aborts in one of four runs, at the exit of a
    # process that has trained any module over gloo.
    path.write_text(
        f"{program}\n"
        "import json, os, pathlib\n"
        "state = model.layers[0].h0.value.value.tolist()\n"
        f"found = pathlib.Path({str(tmp_path)!r}) / os.environ['RANK']\n"
        "found.write_text(json.dumps([loss.item(), state]))\n"
        "os._exit(0)\n"
    )
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [sys.executable, *command, path],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
        timeout=600,
    )
    # Each process has a loss of its own rows, and both have learned the same state.
    (loss, state), (other_loss, other_state) = (
        json.loads((tmp_path / rank).read_text()) for rank in "01"
    )
    assert state == other_state and loss != other_loss


@pytest.mark.skipif(BACKEND != "jax", reason="of JAX alone")
def test_data_parallel_over_two_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    in_a_fresh_process(
        "import replicas; replicas.data_parallel()",
        environment={**os.environ, **flags},
    )
