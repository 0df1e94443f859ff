"""A model and its optimizer, spread over the ranks: takes steps, and is saved and loaded as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from rackscale.programs.checkpoint import State
from rackscale.programs.llama import Llama
from rackscale.programs.settings import Settings

BETAS = (0.9, 0.95)
WEIGHT_DECAY = 0.1
CLIP_NORM = 1.0


class Learner:
    """The same steps at any world size, up to the order of floating-point sums."""

    def __init__(self, settings: Settings, *, vocab: int, device: torch.device, world_size: int) -> None:
        self._settings, self._device = settings, device
        model = Llama(settings.shape, vocab=vocab, length=settings.seq, seed=settings.seed).to(device)
        self._forward = _spread(model, settings, device, world_size)
        # Read after spreading: sharding replaces the parameters.
        self._weights: dict[str, nn.Parameter] = dict(model.named_parameters())
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), lr=settings.lr, betas=BETAS, weight_decay=WEIGHT_DECAY, fused=True
        )
        for weight in self._weights.values():
            self._optimizer.state[weight] = {
                "step": torch.tensor(0.0, device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }

    def step(self, step: int, inputs: Tensor, targets: Tensor) -> Tensor:
        """Take step number `step` (from 0); the loss of this rank's samples before it."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate(self._settings, step)
        with torch.autocast("cuda", torch.bfloat16, enabled=self._device.type == "cuda"):
            logits = self._forward(inputs.to(self._device))
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), targets.to(self._device).flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._weights.values(), CLIP_NORM)
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.detach()

    def state(self) -> State:
        """The live tensors by name: reading them saves, writing into them loads (then call `restore`)."""
        state: State = {}
        for name, weight in self._weights.items():
            moments = self._optimizer.state[weight]
            state[f"model.{name}"] = weight.detach()
            state[f"optimizer.{name}.exp_avg"] = moments["exp_avg"]
            state[f"optimizer.{name}.exp_avg_sq"] = moments["exp_avg_sq"]
        return state

    def restore(self, step: int) -> None:
        """Go on after `step` steps with what was loaded into `state`."""
        for moments in self._optimizer.state.values():
            moments["step"].fill_(float(step))

    def whole_weights(self, *, keep: bool) -> Mapping[str, Tensor]:
        """Every weight, whole and on the CPU, on the ranks that `keep` them. All ranks must call."""
        weights = {}
        for name, weight in self._weights.items():
            tensor = weight.detach()
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if keep:
                weights[name] = tensor.cpu()
        return weights


def rate(settings: Settings, step: int) -> float:
    """Learning rate of step `step`: a linear rise, then a cosine down to a tenth at the last step."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    progress = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.lr * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, progress))))


def _spread(model: Llama, settings: Settings, device: torch.device, world_size: int) -> nn.Module:
    if world_size == 1:
        return model
    if settings.sharding == "ddp":
        from torch.nn.parallel import DistributedDataParallel

        return DistributedDataParallel(model)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (world_size,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)  # changes the model in place
    return model
