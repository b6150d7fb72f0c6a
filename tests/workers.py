"""Python processes of their own, for tests that need several devices or processes, or that kill."""

import os
import socket
import subprocess
import sys
from typing import Any

from tests import ROOT


def start(module: str, *arguments: Any, devices: int | None = None, **environment: str) -> subprocess.Popen[str]:
    """Start ``python -m module arguments`` on so many virtual devices.

    It compiles as this process does, so that bits compare; nothing of the strictness of this suite is set there.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if devices is not None:
        # Fixed when JAX starts.
        environment["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes: subprocess.Popen[str], timeout: float = 300) -> None:
    """Wait for processes; fail with what they wrote if one of them does."""
    for process in processes:
        out, err = process.communicate(timeout=timeout)
        assert process.returncode == 0, out[-3000:] + err[-6000:]


def free_port() -> int:
    """Return a port on which nothing listens."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]
