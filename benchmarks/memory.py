"""How much memory a process takes."""

from pathlib import Path


def peak_bytes():
    """Returns the most memory that this process has held so far."""
    # Not `ru_maxrss`, which on Linux a process inherits from the one that started it.
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(status.read_text().partition("VmHWM:")[2].split()[0])
    import resource  # Not on Windows.

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # in bytes on macOS
