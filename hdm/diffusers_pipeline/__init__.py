"""The model as a diffusers pipeline. Importing this makes the pipeline's class known to
`DiffusionPipeline.from_pretrained`.
"""

import diffusers

from hdm.diffusers_pipeline.denoiser import XUTTransformer
from hdm.diffusers_pipeline.pipeline import HDMPipeline

__all__ = ["HDMPipeline", "XUTTransformer"]

# diffusers looks up by name, in its own module, the class that model_index.json names, and imports
# nothing on a file's word.
setattr(diffusers, HDMPipeline.__name__, HDMPipeline)
