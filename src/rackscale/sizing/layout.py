"""Parallel layouts: one of them to speak about, and many of them as arrays to price at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct

Array: TypeAlias = npt.NDArray[np.float64]
Sharding: TypeAlias = Literal["none", "zero1", "zero2", "fsdp"]
"""What data-parallel ranks divide: nothing, optimizer states (ZeRO-1), gradients too (ZeRO-2), parameters too."""
SHARDINGS: tuple[Sharding, ...] = ("none", "zero1", "zero2", "fsdp")

MODULES = ("attention", "mlp", "norm", "activation", "latent", "experts")
"""What a backward pass can compute again instead of keeping it: core attention, the dense feed-forward part, norms,
the activation function, latent attention's up-projections, the experts."""
SAME = (
    "gpus",
    "tp",
    "pp",
    "cp",
    "ep",
    "etp",
    "virtual",
    "zero_bubble",
    "ulysses",
    "micro_batch",
    "offload",
)
"""Fields of a Layout that are the same as a column of Layouts."""
FULL = frozenset({"layer"})
"""Keep nothing but a layer's input."""


class Layout(Struct, frozen=True, kw_only=True):
    """How one training step is laid out over `gpus`. Degrees are counts of GPUs; dp is what is left of them."""

    gpus: int
    tp: int = 1
    """Tensor parallel, with sequence parallelism."""
    pp: int = 1
    """Pipeline stages."""
    cp: int = 1
    """Context parallel: parts of one sequence."""
    ep: int = 1
    """Expert parallel: taken from tp x cp x dp."""
    etp: int = 1
    """Tensor parallelism inside an expert."""
    virtual: int = 1
    """Model chunks per stage (interleaved schedule)."""
    zero_bubble: bool = False
    """Weights' gradients fill the bubble (ZB-H1, arXiv:2401.10241); without interleaving."""
    ulysses: bool = False
    """Context parallelism exchanges heads for tokens, all to all (arXiv:2309.14509), instead of a ring of keys."""
    micro_batch: int = 1
    """Sequences in one pass."""
    sharding: Sharding = "zero1"
    shard: int = 0
    """Ranks that states are divided among; 0: all of data and context parallelism (HSDP: fewer)."""
    recompute: frozenset[str] = frozenset()
    recomputed: float = 1.0
    """Share of layers that whole layers' recompute concerns (Megatron's method "block")."""
    offload: float = 0.0
    """Share of layers whose activations wait in host memory."""

    @property
    def dp(self) -> int:
        """Data parallel replicas."""
        return self.gpus // (self.tp * self.pp * self.cp)

    def __str__(self) -> str:
        parts = [f"TP{self.tp}", f"PP{self.pp}" + (f"x{self.virtual}" if self.virtual > 1 else "")]
        if self.zero_bubble:
            parts[-1] += " zero-bubble"
        parts += [f"CP{self.cp}" + (" all-to-all" if self.ulysses else "")] * (self.cp > 1)
        parts += [f"EP{self.ep}"] * (self.ep > 1) + [f"ETP{self.etp}"] * (self.etp > 1)
        sharding = f"hsdp({self.shard})" if self.sharding == "fsdp" and self.shard else self.sharding
        parts += [f"DP{self.dp}", sharding, f"MB{self.micro_batch}"]
        if self.recompute:
            share = f" of {self.recomputed:.0%}" if self.recompute == FULL and self.recomputed < 1.0 else ""
            parts.append("recompute " + "+".join(sorted(self.recompute)) + share)
        if self.offload:
            parts.append(f"offload {self.offload:.0%}")
        return " ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Many layouts of one model: arrays of equal length, float64, with the batch each one works on."""

    gpus: Array
    tp: Array
    pp: Array
    cp: Array
    ep: Array
    etp: Array
    virtual: Array
    zero_bubble: Array
    ulysses: Array
    micro_batch: Array
    sharding: Array
    """Place in SHARDINGS."""
    shard: Array
    """Data-parallel replicas that states are divided among; those of context parallelism besides."""
    again: tuple[Array, ...]
    """For each of MODULES: 1 where it is computed again."""
    full: Array
    """Share of layers that are computed again as a whole."""
    offload: Array
    global_batch: Array
    """Sequences per step."""
    tokens: Array
    """Tokens per sequence."""
    document: Array
    """Tokens that may see each other: the sequence, or less where short documents are packed into it."""
    domain: Array
    """GPUs of this job in one NVLink domain."""

    @property
    def dp(self) -> Array:
        """Data parallel replicas."""
        return self.gpus / (self.tp * self.pp * self.cp)

    @property
    def micro_batches(self) -> Array:
        """Passes per step and replica."""
        return self.global_batch / (self.micro_batch * self.dp)

    def __len__(self) -> int:
        return len(self.gpus)

    def take(self, where: npt.NDArray[np.intp] | npt.NDArray[np.bool_]) -> Layouts:
        """Some of them."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        again = tuple(a[where] for a in values.pop("again"))
        return Layouts(again=again, **{name: array[where] for name, array in values.items()})

    @classmethod
    def join(cls, many: Sequence[Layouts]) -> Layouts:
        """One after another."""
        names = [f.name for f in fields(cls) if f.name != "again"]
        again = tuple(np.concatenate(columns) for columns in zip(*(some.again for some in many), strict=True))
        return cls(again=again, **{n: np.concatenate([getattr(some, n) for some in many]) for n in names})

    @classmethod
    def of(
        cls,
        layouts: Sequence[Layout],
        *,
        global_batch: float | Iterable[float],
        tokens: float | Iterable[float],
        domain: float | Iterable[float],
        document: float | Iterable[float] | None = None,
    ) -> Layouts:
        """Layouts as arrays; `domain` is the GPUs that a job of this size gets in one NVLink domain."""

        def column(name: str) -> Array:
            return np.array([getattr(layout, name) for layout in layouts], dtype=float)

        def each(value: float | Iterable[float]) -> Array:
            return np.broadcast_to(np.asarray(value, dtype=float), len(layouts)).copy()

        full = np.array([layout.recomputed * ("layer" in layout.recompute) for layout in layouts])
        dp = np.array([layout.dp for layout in layouts], dtype=float)
        shard = column("shard")
        return cls(
            **{name: column(name) for name in SAME},
            sharding=np.array([SHARDINGS.index(layout.sharding) for layout in layouts], dtype=float),
            shard=np.where(shard > 0, np.clip(shard / column("cp"), 1.0, dp), dp),
            again=tuple(
                np.array([m in layout.recompute for layout in layouts], dtype=float) for m in MODULES
            ),
            full=full,
            global_batch=each(global_batch),
            tokens=each(tokens),
            document=each(tokens if document is None else document),
            domain=each(domain),
        )
