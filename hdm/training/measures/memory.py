"""Memory of a training step: what stays, and what a forward pass keeps for the backward pass, by
formula.

The formulas follow `hdm.models.layers` and `hdm.kernels` operation by operation; tests hold them
against the tensors that autograd keeps, and the peak against a step's. Compiled blocks keep less:
for them the figures are an upper bound.

Shapes: L image tokens, T text tokens, S tokens that a block sees, Q of them that it gives back, D
width, M feed-forward width.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hdm.architecture import XUTConfig
from hdm.kernels.functions import SHORT
from hdm.models.execution import recomputed_blocks
from hdm.models.tread import BlockTokens, block_tokens
from hdm.training.settings import Phase, TrainSettings


@dataclass(frozen=True)
class Arithmetic:
    """How a step computes.

    Args:
        item: bytes of a number in the matrix products: 4, or 2 in bfloat16 autocast.
        by_hand: with CPU kernels (`hdm.kernels`), whose gradients are written by hand.
    """

    item: int
    by_hand: bool


@dataclass(frozen=True)
class Parameters:
    """Of a denoiser: all, the matrices that autocast casts, those that Muon takes, the largest
    block's, and all outside the blocks.
    """

    total: int
    matrices: int
    muon: int
    largest_block: int
    outside: int


def _num_parameters(module: Any) -> int:
    return sum(value.numel() for value in module.parameters())


@lru_cache(maxsize=16)
def parameters(config: XUTConfig) -> Parameters:
    """Counted on the model itself, made without memory."""
    import torch

    from hdm.models.building import build_denoiser
    from hdm.training.state.optimizers import is_muon

    # On the meta device, a model of any size can be counted without its memory.
    with torch.device("meta"):
        model = build_denoiser(config)
    named = list(model.named_parameters())
    total = sum(value.numel() for _, value in named)
    blocks = [_num_parameters(block) for block in model.blocks()]
    return Parameters(
        total,
        # Autocast casts the matrices of linear layers, and the patch embedding's convolution.
        sum(value.numel() for _, value in named if value.ndim in (2, 4)),
        sum(value.numel() for name, value in named if is_muon(name, value)),
        max(blocks),
        total - sum(blocks),
    )


@dataclass(frozen=True)
class Memory:
    """Bytes of a training step on one device.

    Args:
        weights, gradients, optimizer, average: of all parameters, or of a device's shard, in
            float32; `average` are the moving averages of the weights.
        copies: bfloat16 copies of the matrices that are not made anew with their block, and DDP's
            buckets; of a sharded model, what of it is put together at once.
        encoders: weights of models that run in training.
        checkpoint: the copy from which one is written; on an accelerator's machine it is not in the
            accelerator's memory.
        sample: of what one sample of a micro-batch keeps until the backward pass, and that needs
            beside.
        micro_batch: samples.
    """

    weights: int
    gradients: int
    optimizer: int
    average: int
    copies: int
    encoders: int
    checkpoint: int
    sample: int
    micro_batch: int

    @property
    def fixed(self) -> int:
        """Whatever the micro-batch."""
        return (
            self.weights
            + self.gradients
            + self.optimizer
            + self.average
            + self.copies
            + self.encoders
            + self.checkpoint
        )

    @property
    def total(self) -> int:
        return self.fixed + self.sample * self.micro_batch

    def largest_micro_batch(self, room: float) -> int:
        """Samples that fit into so many bytes; 0 if not even one does."""
        return max(0, int((room - self.fixed) // self.sample))


def training_memory(
    settings: TrainSettings, phase: Phase, tokens: tuple[int, int], on_cpu: bool, encoders: int = 0
) -> Memory:
    """Of one step of a phase.

    Args:
        settings: model, optimizer and precision.
        phase: batch, TREAD and recomputation.
        tokens: of the image and of the text, of a sample.
        on_cpu: whether on a CPU.
        encoders: bytes of the weights of models that run in training.
    """
    model = settings.model
    half = settings.precision == "bfloat16"
    count = parameters(settings.model)
    # Shares may differ by one; this is the largest.
    share = -(-phase.batch_size // settings.num_processes)
    held = count.total // (settings.num_processes if settings.shards else 1)
    arithmetic = Arithmetic(2 if half else 4, by_hand=on_cpu)
    optimizer = optimizer_bytes(model, phase) * held // count.total
    trained = held
    if phase.adapter is not None:
        # An adapter is never sharded.
        trained = trained_parameters(model, phase)
        held += trained
    # `precision` is that of matrix products; weights are always stored in float32.
    own = 4 * trained
    average = own * (1 + len(settings.ema_lengths))
    return Memory(
        weights=4 * held,
        gradients=own,
        optimizer=optimizer,
        average=average,
        # Autocast keeps its copies to the end of the pass, but recomputed blocks make theirs anew.
        copies=(round(2 * count.matrices * (1 - phase.checkpoint_blocks)) if half else 0)
        + _exchanged_bytes(settings, phase, count, trained),
        encoders=encoders,
        # On the CPU, the copy from which checkpoints are written shares the memory with training.
        checkpoint=own + optimizer + average if on_cpu and not settings.shards else 0,
        sample=sample_bytes(model, phase, tokens, arithmetic),
        micro_batch=min(phase.micro_batch or share, share),
    )


def trained_parameters(config: XUTConfig, phase: Phase) -> int:
    """What a phase trains of a denoiser: all, or its adapter, counted on itself, made without
    memory.

    Raises:
        ConfigError: the adapter fits no layer, or the package peft is not installed.
    """
    if phase.adapter is None:
        return parameters(config).total
    import torch

    from hdm.models.adapters import attach, check_package
    from hdm.models.building import build_denoiser

    check_package("train.phases")
    with torch.device("meta"):
        model = build_denoiser(config)
        attach(model, phase.adapter, "train.phases")
    return sum(value.numel() for value in model.parameters() if value.requires_grad)


def _exchanged_bytes(settings: TrainSettings, phase: Phase, count: Parameters, trained: int) -> int:
    """What several processes need to exchange weights and gradients.

    DDP: buckets for all gradients. Sharded: what lies outside the blocks for the whole step, with
    its bfloat16 copies where those of the blocks are not kept; and four times a block, which is
    itself, the next one on its way, and its gradients before and while these are spread.
    """
    if not settings.shards:
        return 4 * trained if settings.num_processes > 1 else 0
    outside = 4 + (2 * phase.checkpoint_blocks if settings.precision == "bfloat16" else 0)
    return round(outside * count.outside) + 4 * 4 * count.largest_block


def optimizer_bytes(model: XUTConfig, phase: Phase) -> int:
    """Two averages a parameter for AdamW, one in float32 for Muon."""
    if phase.adapter is not None:
        # As AdamW's, which is an upper bound for Muon.
        return 2 * (phase.optimizer.state_bits // 8) * trained_parameters(model, phase)
    count = parameters(model)
    muon = count.muon if phase.optimizer.kind == "muon" else 0
    # AdamW keeps two moments in `state_bits`, Muon one average in float32.
    return 2 * (phase.optimizer.state_bits // 8) * (count.total - muon) + 4 * muon


def sample_bytes(
    model: XUTConfig, phase: Phase, tokens: tuple[int, int], arithmetic: Arithmetic
) -> int:
    """What a sample adds to the peak, which comes where the backward pass meets the most: walked
    from the last block to the first.
    """
    lowest = min(rate for _, rate in phase.tread_rates)  # keeps the most tokens
    blocks = block_tokens(model, phase.tread_route, tokens, lowest)
    again = recomputed_blocks(len(blocks), phase.checkpoint_blocks)
    kept, peak = 0, 0
    for number, block in enumerate(blocks):
        needed = block_bytes(model, block, arithmetic)
        # The stream is float32 even under autocast.
        stream = 4 * block.seen * model.width
        # A recomputed block keeps its input alone, and has the rest, which holds that too, when its
        # turn comes.
        beside = kept + (max(needed, stream) if number in again else needed)
        kept += stream if number in again else needed
        peak = max(peak, beside + _passing_bytes(model, block, arithmetic))
    return max(peak, kept + output_bytes(model, tokens[0], arithmetic)) + input_bytes(
        model, tokens, arithmetic
    )


def block_bytes(model: XUTConfig, block: BlockTokens, arithmetic: Arithmetic) -> int:
    """What autograd keeps of one block, for one sample.

    Self-attention: the norm's input (not by hand) and result, the products' input, queries, keys
    and values, these as they were before norm and rotation, the angles, the attention's result, and
    the update in float32. Cross-attention: the same with the skip. Feed-forward: norm, input, both
    halves, one of them after its activation, their product, and the update.
    """
    d = model.width
    m = model.mlp_width
    i = arithmetic.item
    norm = (4 if arithmetic.by_hand else 8) * d
    update = 4 * d
    if arithmetic.by_hand:
        # The result twice, head by head and as the output layer reads it; for few tokens the
        # attention's weights instead of the first.
        weights_kept = i == 4 and block.seen <= SHORT
        # Five: queries, keys and values, and queries and keys before their norm. Angles are K/2
        # complex numbers per head and token.
        placed = (5 if model.qk_norm else 3) * i * d + 4 * d
        result = i * d + (i * model.num_heads * block.seen if weights_kept else i * d)
        crossing = placed
    else:
        common = 2 * i * d + (16 if model.qk_norm else 0) * d + 6 * d
        result = i * d
        placed = common + 3 * i * d + (0 if i == 4 else 8 * d)
        crossing = common + 2 * i * d + 8 * d
    attention = block.seen * (norm + i * d + placed) + block.given * (result + update)
    crossed = block.seen * (norm + 2 * i * d + crossing + result + update)
    forward = block.given * (norm + i * d + 4 * i * m + update)
    return attention + forward + (crossed if block.cross else 0)


def _passing_bytes(model: XUTConfig, block: BlockTokens, arithmetic: Arithmetic) -> int:
    """Of the backward pass through a feed-forward layer: gradients of stream and update, of both
    halves and of their product.
    """
    return block.given * (8 * model.width + 3 * arithmetic.item * model.mlp_width)


def input_bytes(model: XUTConfig, tokens: tuple[int, int], arithmetic: Arithmetic) -> int:
    """Latent, noise, what is predicted and its differences; the text embedding as it is read and as
    it is multiplied.
    """
    num_image, num_text = tokens
    latent = num_image * model.channels * model.patch_size**2
    return 4 * 6 * latent + (4 + arithmetic.item) * num_text * model.text_width


def output_bytes(model: XUTConfig, num_image: int, arithmetic: Arithmetic) -> int:
    """What the last norm and the output layer keep: gone before the blocks' backward pass
    begins.
    """
    norm = (4 if arithmetic.by_hand else 8) if model.final_norm else 0
    return (arithmetic.item + norm) * num_image * model.width
