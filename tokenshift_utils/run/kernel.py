"""The kernel that notebooks are run in."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import ClassVar

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels in the interpreter that is running, whatever kernelspecs are installed.

    A ``python3`` kernelspec of another environment, found first on Jupyter's path, would run
    notebooks with other packages, or none.
    """

    environ: ClassVar[Mapping[str, str]] = os.environ
    started: ClassVar[list[ThisInterpreter]] = []

    @classmethod
    def within(cls, environ: Mapping[str, str]) -> type[AsyncKernelManager]:
        """The same with an environment of its own, so that several can be told different things."""
        return type(cls.__name__, (cls,), {"environ": environ})

    @classmethod
    def signal_all(cls, number: int) -> None:
        """Send a signal to all kernels that still run."""
        for manager in cls.started:
            process = manager.has_kernel and manager.provisioner.process
            if process:
                process.send_signal(number)  # (to none that has ended)

    async def start_kernel(self, **options) -> None:
        await super().start_kernel(**({"env": dict(self.environ)} | options))
        self.started.append(self)

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3 (ipykernel)",
            language="python",
        )
