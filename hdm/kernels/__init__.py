"""CPU kernels of the denoiser: faster modules with the same results to float32 rounding.

`hdm.models` is plain PyTorch and knows nothing of them. Undocumented operators of torch are used
here alone. docs/decisions/0007-cpu-kernels.md tells why it is so.
"""

from hdm.kernels.install import Installed, install, remove

__all__ = ["Installed", "install", "remove"]
