"""The kernel that notebooks are run in."""

import sys

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels in the interpreter that is running, whatever kernelspecs are installed.

    A ``python3`` kernelspec of another environment, found first on Jupyter's path, would run
    notebooks with other packages, or none.
    """

    @property
    def kernel_spec(self) -> KernelSpec:
        return KernelSpec(
            argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
            display_name="Python 3 (ipykernel)",
            language="python",
        )
