"""What a training run was asked to do. Light: read and checked before torch is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rackscale.errors import RackscaleError

Sharding = Literal["fsdp", "ddp"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaShape:
    """Sizes of a Llama-architecture model, but for its vocabulary, which the tokenizer decides."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    """Positions that the exported model accepts."""
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-5

    @property
    def head(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads


PRESETS = {
    # 0.9 M parameters at 1,024 tokens: learns the project's text on a CPU core in about a minute.
    "tiny": LlamaShape(hidden=128, intermediate=384, layers=4, heads=4, kv_heads=2, context=512),
    "small": LlamaShape(hidden=512, intermediate=1408, layers=8, heads=8, kv_heads=4, context=2048),
    # The sizes of Llama 3.2 1B, without its RoPE scaling.
    "1b": LlamaShape(
        hidden=2048, intermediate=8192, layers=16, heads=32, kv_heads=8, context=8192, rope_theta=500_000.0
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Defaults are the demo's."""

    preset: str = "tiny"
    text: Path | None = None
    """A UTF-8 file to learn; None: the project's own text."""
    vocab: int = 1024
    steps: int = 200
    seq: int = 96
    """Tokens per sample."""
    global_batch: int = 16
    """Samples per step, all ranks together."""
    lr: float = 3e-3
    warmup: int = 20
    """Steps over which the learning rate rises to `lr`; then it falls to a tenth along a cosine."""
    seed: int = 0
    sharding: Sharding = "fsdp"
    checkpoint_every: int = 50
    """Steps between checkpoints."""
    checkpoint_dir: Path | None = None
    """None: nothing is saved."""
    export: bool = False
    output_dir: Path | None = None
    step_time_s: float = 0.0
    report_s: float = 0.2
    timeout_s: float = 300.0

    def check(self, world_size: int) -> None:
        """Raise RackscaleError for what can't work, with the way out."""
        if self.global_batch % world_size:
            lower = self.global_batch // world_size * world_size
            better = f"{lower} or {lower + world_size}" if lower else str(world_size)
            raise RackscaleError(
                f"--global-batch {self.global_batch} can't be shared evenly by {world_size} ranks",
                hint=f"use {better}",
            )
        if self.export and self.output_dir is None:
            raise RackscaleError(
                "--export has nowhere to write", hint="give --output-dir, or set RACKSCALE_OUTPUT_DIR"
            )
        if self.seq > self.shape.context:
            raise RackscaleError(
                f"--seq {self.seq} is longer than the {self.shape.context} positions of preset {self.preset!r}",
                hint=f"use --seq {self.shape.context} or a larger preset",
            )

    @property
    def shape(self) -> LlamaShape:
        return PRESETS[self.preset]

    def identity(self) -> dict[str, object]:
        """What must not change from one attempt to the next: the model, its data and their order."""
        return {
            "--preset": self.preset,
            "--vocab": self.vocab,
            "--seq": self.seq,
            "--global-batch": self.global_batch,
            "--seed": self.seed,
        }
