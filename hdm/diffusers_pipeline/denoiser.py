"""XUT as a diffusers model: config.json holds XUTConfig's fields, tensors are named as XUT names them."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from hdm.architecture import XUTConfig
from hdm.models.xut import XUT


class XUTTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]
    """The denoiser; see `hdm.models.xut.XUT`, which it holds as `xut`. Arguments are the fields of `XUTConfig`."""

    # Angles of time and place: 16 bits would be wrong by whole turns.
    _keep_in_fp32_modules: Any = ["freqs"]  # noqa: RUF012  (diffusers takes nothing but a list)

    def _build(self, **values: Any) -> None:
        super().__init__()
        xut = XUT(XUTConfig.from_dict(values))
        for name, layer in xut.named_children():
            self.add_module(name, layer)
        # Not as a module, whose name would come before that of every tensor.
        object.__setattr__(self, "xut", xut)

    # diffusers reads from a signature what belongs into config.json.
    _build.__signature__ = inspect.signature(XUTConfig.__init__)  # type: ignore[attr-defined]
    __init__ = register_to_config(_build)

    def __getattr__(self, name: str) -> Any:
        # diffusers would take `final_norm`, a layer, for the configuration's field of that name.
        return nn.Module.__getattr__(self, name)

    def forward(self, latent: Tensor, timestep: Tensor, text: Tensor, **given: Any) -> Tensor:
        """The velocity; see `XUT.forward`."""
        return self.xut(latent, timestep, text, **given)
