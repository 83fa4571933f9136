"""NVIDIA's Multi-Process Service (MPS): several processes compute on a GPU at the same time."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

CONTROL = "nvidia-cuda-mps-control"
"""Program that starts and ends the service; it comes with the driver."""


class Unavailable(RuntimeError):
    """Raised when the service cannot be started; the message has the reason."""


def without() -> dict[str, str]:
    """Return the environment of processes that do not use a service, not even one of the machine."""
    return {"CUDA_MPS_PIPE_DIRECTORY": "/nonexistent"}


@contextmanager
def service() -> Iterator[dict[str, str]]:
    """Run a service of our own, and yield the environment of the processes that use it.

    It ends with the context, and another service of the machine is left alone. Raises Unavailable.
    """
    with tempfile.TemporaryDirectory(prefix="mps-", ignore_cleanup_errors=True) as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        _control("-d", environment=own)
        try:
            yield own
        finally:
            _control(environment=own, command="quit\n")


def _control(*arguments: str, environment: dict[str, str], command: str = "") -> None:
    """Call the control program, with a command on its standard input. Raises Unavailable."""
    # The service would number the GPUs of this variable anew, and clients would look for the old numbers.
    inherited = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        ended = subprocess.run(
            [CONTROL, *arguments],
            input=command,
            # Not a pipe, which the service would hold open after the program has ended.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=inherited | environment,
            text=True,
            check=False,
            timeout=60,
        )
    except FileNotFoundError:
        raise Unavailable(f"{CONTROL} is not installed") from None
    except subprocess.TimeoutExpired:
        raise Unavailable(f"{CONTROL} does not answer") from None
    if ended.returncode:
        raise Unavailable(f"{CONTROL} ended with status {ended.returncode}")
