"""Files of a denoiser on disk. Light: torch is not imported."""

# As a training phase writes them.
WEIGHTS, EMA = "weights.safetensors", "ema.safetensors"
CARD = "model.json"

# As diffusers does.
MODEL_INDEX, TRANSFORMER = "model_index.json", "transformer"
TENSORS = "diffusion_pytorch_model.safetensors"
