"""XUT as a diffusers model: config.json holds XUTConfig's fields, tensors are named as XUT names
them.
"""

from __future__ import annotations

import inspect
from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from hdm.architecture import XUTConfig
from hdm.models.xut import XUT


class XUTTransformer(ModelMixin, ConfigMixin, XUT):  # type: ignore[misc]
    """XUT itself, with diffusers' loading and saving. Arguments are the fields of `XUTConfig`.

    `config` is what config.json holds, as diffusers has it; `architecture` the same as an
    `XUTConfig`.
    """

    # Angles of time and place: 16 bits would be wrong by whole turns.
    _keep_in_fp32_modules: Any = ["freqs"]  # noqa: RUF012  (diffusers takes nothing but a list)

    def _build(self, **values: Any) -> None:
        # ModelMixin's own constructor would call XUT's without its configuration; this is all that
        # it sets.
        XUT.__init__(self, XUTConfig.from_dict(values))
        self._gradient_checkpointing_func = None

    # diffusers reads from a signature what belongs into config.json.
    _build.__signature__ = inspect.signature(XUTConfig.__init__)  # type: ignore[attr-defined]
    __init__ = register_to_config(_build)

    def __getattr__(self, name: str) -> Any:
        # diffusers would take `final_norm`, a layer, for the configuration's field of that name.
        return nn.Module.__getattr__(self, name)
