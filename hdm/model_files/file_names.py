"""Files of a denoiser on disk. Light: torch is not imported."""

# As a training phase writes them.
WEIGHTS = "weights.safetensors"
EMA = "ema.safetensors"
CARD = "model.json"

# As a training phase of an adapter writes them, and peft too.
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"

# As diffusers does.
MODEL_INDEX = "model_index.json"
TRANSFORMER = "transformer"
TENSORS = "diffusion_pytorch_model.safetensors"
