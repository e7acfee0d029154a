"""Captions from any transformers image-text-to-text model: LLaVA, BLIP-2, Qwen-VL, Florence and
their kin.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image

from hdm.captioning.makers import Describing, caption_seed
from hdm.captioning.settings import CaptionMaker
from hdm.errors import Refusal
from hdm.keys import Key
from hdm.models.components import locate

DEFAULT_INSTRUCTION = "Describe the picture in one sentence."


class VisionLanguage(Describing):
    """Captions by a transformers model.

    Args:
        settings: `prompt` is the instruction; None: "Describe the picture in one sentence." for
            models that chat, none for others.
        reference: a local folder or `org/name[@revision]` with weights as safetensors; code from a
            hub is never run.
        device: torch device.

    Raises:
        InputError: the model is missing, or is not an image-text-to-text model.
    """

    def __init__(self, settings: CaptionMaker, reference: str, device: str = "cpu") -> None:
        super().__init__(settings)
        from transformers import AutoModelForImageTextToText, AutoProcessor

        folder = locate(reference, download=True)
        kinds = (OSError, ValueError, KeyError, ImportError)
        do = "name a transformers image-text-to-text model in components.captioner"
        with Refusal(*kinds, what="the captioner cannot be loaded", where=folder, do=do):
            self.processor: Any = AutoProcessor.from_pretrained(folder, trust_remote_code=False)
            # Run no code from a hub, and load no pickled weights, which may contain code.
            model: Any = AutoModelForImageTextToText.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True
            )
        self.model = model.to(device).eval()
        if getattr(self.processor, "tokenizer", None) is not None:
            self.processor.tokenizer.padding_side = "left"  # text goes on at the right end
        # Several threads may call this at once, but tokenizers and torch's global generator serve
        # only one at a time.
        self.lock = threading.RLock()
        self.text = self._instruction()

    def greedy(self, pictures: list[np.ndarray]) -> list[str]:
        return self._generate(pictures)

    def sampled(self, key: Key, picture: np.ndarray, count: int) -> list[str]:
        # transformers samples with torch's global generator, which others use too.
        with self.lock, torch.random.fork_rng():
            torch.manual_seed(caption_seed(key))
            return self._generate(
                [picture],
                do_sample=True,
                temperature=self.settings.temperature,
                # transformers would otherwise draw from the 50 likeliest tokens alone.
                top_k=0,
                num_return_sequences=count,
            )

    def _instruction(self) -> str | None:
        if not getattr(self.processor, "chat_template", None):
            return self.settings.prompt
        words = {"type": "text", "text": self.settings.prompt or DEFAULT_INSTRUCTION}
        conversation = [{"role": "user", "content": [{"type": "image"}, words]}]
        instruction: str = self.processor.apply_chat_template(
            conversation, add_generation_prompt=True, tokenize=False
        )
        return instruction

    @torch.inference_mode()
    def _generate(
        self, pictures: list[np.ndarray], do_sample: bool = False, **options: Any
    ) -> list[str]:
        prompts = {} if self.text is None else {"text": [self.text] * len(pictures)}
        with self.lock:
            images = [Image.fromarray(pixels) for pixels in pictures]
            inputs = self.processor(images=images, return_tensors="pt", padding=True, **prompts)
        inputs = inputs.to(self.model.device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of defaults in models' own generation settings
            # A model's own generation settings may ask for beams or sampling; these overrule them.
            generated = self.model.generate(
                **inputs,
                do_sample=do_sample,
                num_beams=1,
                max_new_tokens=self.settings.max_tokens,
                **options,
            )
        answers = _answer(generated, inputs.get("input_ids"))
        texts: list[str] = self.processor.batch_decode(answers, skip_special_tokens=True)
        return texts


def _answer(generated: torch.Tensor, prompt: torch.Tensor | None) -> torch.Tensor:
    """The tokens after the prompt, which decoder-only models repeat and encoder-decoders do not."""
    if prompt is None or generated.shape[1] < prompt.shape[1]:
        return generated
    repeats = len(generated) // len(prompt)
    repeated = torch.equal(
        generated[:, : prompt.shape[1]], prompt.repeat_interleave(repeats, dim=0)
    )
    return generated[:, prompt.shape[1] :] if repeated else generated
