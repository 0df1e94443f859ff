"""How a model is trained: on what, in which precision, by which software. The parts of a size that are no layout."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from msgspec.structs import replace

from rackscale import catalog, collectives
from rackscale.errors import RackscaleError
from rackscale.models.description import Experts

Precision: TypeAlias = Literal["bf16", "fp8", "fp8-block", "mxfp8", "nvfp4"]
Task: TypeAlias = Literal["pretrain", "sft", "lora"]
Family: TypeAlias = Literal["megatron", "plain", "mlperf", "torch", "composer", "maxtext"]
Optimizer: TypeAlias = Literal["adamw", "muon", "sgd"]
Dispatcher: TypeAlias = Literal["alltoall", "once"]
"""A copy for each of a token's experts (NCCL's all-to-all), or one per domain and rank (DeepEP, HybridEP)."""
Graphs: TypeAlias = Literal["none", "layers", "step"]
"""Of nothing, of what is in a layer but its experts, of a whole step."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FAMILIES: tuple[Family, ...] = get_args(Family)
TASKS: tuple[Task, ...] = get_args(Task)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
DISPATCHERS: tuple[Dispatcher, ...] = get_args(Dispatcher)
GRAPHS: tuple[Graphs, ...] = get_args(Graphs)
NEWEST = 2026.6
"""Year of the newest software that the calibration has seen."""

FUSED_EXPERTS = 2026.4
"""Since when (Megatron Bridge 26.06) gated experts quantise and activate inside their products' kernels."""

_CURVES = {"bf16": "bf16", "fp8": "fp8", "fp8-block": "fp8_block", "mxfp8": "mxfp8", "nvfp4": "nvfp4"}
_BYTES = {"bf16": 2.0, "fp8": 1.0, "fp8-block": 1.0, "mxfp8": 1.03125, "nvfp4": 0.5625}
"""Of a quantised element with its share of the block's scale (OCP MX: 1 per 32; NVFP4: 1 per 16)."""
_UPDATE = {"adamw": 30.0, "muon": 46.0, "sgd": 18.0}
"""Bytes read and written per parameter: gradient, master weight and moments in FP32, and the BF16 weight. Muon reads
its momentum again for five Newton-Schulz iterations over matrices."""
_ARCHITECTURES = {
    "A100-40GB": "ampere",
    "A100-80GB": "ampere",
    "H100": "hopper",
    "H100-96GB-500W": "hopper",
    "H200": "hopper",
    "B200": "blackwell",
    "GB200": "blackwell",
    "B300": "blackwell",
    "GB300": "blackwell",
}


SERIAL = frozenset({"plain", "torch", "composer"})
"""Frameworks that run tensor-parallel messages beside products only where they are told to, and reduce gradients in
FP32; the others' recipes for performance do the contrary."""


def usual_overlap(family: Family) -> bool:
    """Whether tensor-parallel messages run beside products where nothing is said."""
    return family not in SERIAL


def usual_gradient_bytes(family: Family) -> float:
    """Per gradient as it is kept and reduced, where nothing is said."""
    return 4.0 if family in SERIAL else 2.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a model is trained. Raises UnknownNameError (from `system`) for a system that the catalog lacks."""

    system: str
    precision: Precision = "bf16"
    task: Task = "pretrain"
    family: Family = "megatron"
    """The framework, as far as its kernels and its overlap go."""
    year: float = NEWEST
    """When the software was released: a year and its fraction."""
    optimizer: Optimizer = "adamw"
    gradient_bytes: float = 2.0
    """Per gradient as it is kept and reduced: Megatron Bridge's recipes for performance say
    `grad_reduce_in_fp32 = False`."""
    all_bf16: bool = False
    """Whether the optimizer works on BF16 alone, without FP32 weights or moments: plain torch.optim.Adam on a BF16
    model, as NeMo Automodel's benchmarks have it (and the loss without an FP32 copy of the logits)."""
    graphs: Graphs = "layers"
    """How far CUDA graphs (or a compiler) take the launches of kernels off the host."""
    bf16_layers: float = 0.0
    """Share of layers whose products stay in BF16 where others are quantised."""
    bf16_projections: bool = False
    """Whether attention's projections, and those into experts' latent space, stay in BF16 too."""
    dispatcher: Dispatcher = "once"
    """How tokens travel to their experts."""
    imbalance: float = 1.0
    """Tokens of the busiest expert-parallel rank over the mean; all wait for it."""
    drops: bool = False
    """Whether experts take a fixed number of tokens and drop the rest: the host need not wait to know how many."""
    overlaps_ep: bool = False
    """Whether messages to experts run beside the work of another micro-batch."""
    overlaps_tp: bool = True
    """Whether tensor-parallel messages run beside products."""
    document_tokens: float | None = None
    """Mean length of the documents packed into a sequence, where attention stops at their ends; None: not packed."""
    nic_bits_per_s: float | None = None
    """Of the fabric, per GPU; None: the system's own."""
    leaf_gpus: int | None = None
    """GPUs of the job under one leaf switch (or rail group), whole domains; None: all."""
    oversubscription: float | None = None
    """GPUs under a leaf for each NIC's worth of its uplinks; None: what the fabric's vendor claims."""

    @cached_property
    def hardware(self) -> catalog.System:
        """The system's facts."""
        return catalog.system(self.system)

    @property
    def chip(self) -> str:
        """The accelerator's name."""
        return self.hardware.accelerator.name

    @property
    def architecture(self) -> str:
        """The accelerator's generation. Raises RackscaleError where nothing was ever measured of it."""
        if self.chip not in _ARCHITECTURES:
            raise RackscaleError(
                f"{self.system}: nothing was measured of training on {self.chip}",
                hint=f"training is modelled on {', '.join(_ARCHITECTURES)}",
            )
        return _ARCHITECTURES[self.chip]

    @cached_property
    def network(self) -> collectives.Network:
        """The tiers of the network."""
        found = collectives.network(self.system)
        if self.oversubscription is not None:
            found = replace(found, oversubscription=self.oversubscription)
        usual = self.hardware.fabric_bits_per_s_per_gpu
        if self.nic_bits_per_s is None or usual is None:
            return found
        speed = found.out.bytes_per_s * self.nic_bits_per_s / usual
        return replace(found, out=replace(found.out, bytes_per_s=speed))

    @property
    def host_bytes_per_s(self) -> float:
        """Of the link to host memory, in one direction."""
        rate = self.hardware.accelerator.host_bytes_per_s
        assert rate is not None, self.system
        return rate / 2.0

    @property
    def peak_bf16(self) -> float:
        """FLOP/s, dense."""
        peak = self.hardware.accelerator.bf16_flop_per_s
        assert peak is not None, self.system
        return peak

    @property
    def peak_flop_per_s(self) -> float:
        """Dense, of the precision that products run in; what MFU is measured against."""
        chip = self.hardware.accelerator
        low = (
            chip.fp4_flop_per_s if self.precision == "nvfp4" else chip.fp8_flop_per_s if self.is_low else None
        )
        return low or self.peak_bf16

    @property
    def price(self) -> catalog.Price | None:
        """The newest list price of the system; None: nobody publishes one."""
        return self.hardware.prices[-1] if self.hardware.prices else None

    @property
    def usd_per_gpu_hour(self) -> float | None:
        """The newest list price."""
        return None if self.price is None else self.price.usd_per_gpu_hour

    @property
    def is_low(self) -> bool:
        """Whether linear layers are quantised."""
        return self.precision != "bf16"

    @property
    def products(self) -> str:
        """The kernels' name of the precision."""
        return _CURVES[self.precision]

    @property
    def product_bytes(self) -> float:
        """Of one quantised element."""
        return _BYTES[self.precision]

    @property
    def backward_products(self) -> float:
        """Products going backward per product forward: an adapter's frozen weights need no gradient."""
        return 1.0 if self.task == "lora" else 2.0

    @property
    def trained(self) -> float:
        """Share of the parameters that an optimizer updates (assumed for LoRA: rank 16 on a 70B model)."""
        return 0.002 if self.task == "lora" else 1.0

    @property
    def gather_bytes(self) -> float:
        """Per parameter of a quantised product, gathered: quantised where the framework can."""
        return (
            self.product_bytes
            if self.precision in {"fp8", "mxfp8"} and self.family in {"megatron", "mlperf"}
            else 2.0
        )

    @property
    def weight_bytes(self) -> float:
        """Per parameter of a quantised product, in memory. Adapters keep what they rest on quantised; Megatron keeps
        FP8 weights only, where no transposed copy is needed (Hopper needs one, and block scales keep one per
        direction)."""
        if self.task == "lora":
            return self.product_bytes
        alone = self.precision == "fp8" and self.architecture == "blackwell"
        return 1.0 if alone and self.family in {"megatron", "mlperf"} else 2.0

    @property
    def logit_copies(self) -> float:
        """Logits in FP32 at once: one where the loss is fused, three (BF16 too, and a gradient) in plain PyTorch; half
        of it where the loss stays in BF16."""
        return (1.5 if self.all_bf16 else 3.0) if self.family == "torch" else 1.0

    @property
    def update_bytes(self) -> float:
        """Memory traffic of the optimizer per parameter."""
        return _UPDATE[self.optimizer]


def fuses_experts(recipe: Recipe, experts: Experts | None) -> bool:
    """Whether experts' products quantise and activate in their own kernels: MXFP8 on Blackwell, gated, unclamped."""
    plain = experts is not None and experts.gated and not experts.clamped
    return plain and recipe.year >= FUSED_EXPERTS and recipe.precision == "mxfp8"
