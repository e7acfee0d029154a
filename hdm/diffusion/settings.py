"""How pictures are generated."""

from __future__ import annotations

from typing import Literal

from hdm import values
from hdm.settings import Settings, since


class SamplerSettings(Settings):
    """How evaluation and `hdm sample` turn noise into pictures."""

    steps: values.Few = 16
    """Steps from noise to picture."""
    guidance: values.Guidance = 3.0
    """How strongly the prompt leads; 1 is off."""
    solver: Literal["euler", "heun"] = "euler"
    """euler; or heun, twice the work a step and fewer steps needed."""
    guidance_interval: tuple[values.Share, values.Share] = since("0.3.0", (0.0, 1.0))
    """Times with guidance, from 0 (picture) to 1 (noise); 0.1,0.8, say."""
    tread_rates: tuple[values.Rate, values.Rate] = since("0.3.0", (0.0, 0.0))
    """Shares of the tokens that the prompt's and the negative branch drop."""
    shift: values.Shift = since("0.3.0", 1.0)
    """Shift of the times towards noise; about 3 suits 1024 px."""
