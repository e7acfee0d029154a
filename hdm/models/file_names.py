"""Files of a trained denoiser, as a training phase writes them. Light: torch is not imported."""

WEIGHTS, EMA = "weights.safetensors", "ema.safetensors"
MODEL = "model.json"
