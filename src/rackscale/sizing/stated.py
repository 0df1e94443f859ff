"""What one row of a table of measurements states: the model, the layout and the recipe of a step."""

from __future__ import annotations

import re
from dataclasses import replace
from math import gcd

import msgspec

from rackscale import catalog, kernels, models
from rackscale.errors import DocumentError, RackscaleError, UnknownNameError
from rackscale.models.description import Model
from rackscale.sizing.division import undivided
from rackscale.sizing.experts import experts_of
from rackscale.sizing.fields import Fields, columns
from rackscale.sizing.layout import Layout, Sharding
from rackscale.sizing.recipe import (
    PRECISIONS,
    TASKS,
    Dispatcher,
    Family,
    Graphs,
    Precision,
    Recipe,
    Task,
    usual_gradient_bytes,
    usual_overlap,
)

SHARDED = ("ddp", "dist", "zero1", "zero2", "zero3", "fsdp", "hsdp", "none")
"""How values of `dp_type` begin."""
PACKED_TOKENS = 512.0
"""Assumed mean length of the documents that NeMo's fine-tuning recipes pack (SQuAD)."""
COLUMNS = {"virtual": "vp"}
"""What tables call a degree, where the name differs."""


def model_of(of: Fields) -> Model | None:
    """With as many layers as the row says. None: there is a reason."""
    name = of.text("model")
    try:
        found = models.model(name)
    except (UnknownNameError, DocumentError) as error:
        of.reasons.append(f"model: {_told(error)}")
        return None
    if "w/o MTP" in of.text("notes"):
        found = msgspec.structs.replace(found, mtp_layers=0)
    layers = of.count("layers", found.depth)
    return found if layers == found.depth else shortened(found, layers)


def _told(error: RackscaleError) -> str:
    return f"{error} ({error.hint})" if error.hint else str(error)


def shortened(model: Model, depth: int) -> Model:
    """`model` with `depth` layers, of each kind in proportion: the proxies that vendors measure."""
    share, left, kinds = depth / model.depth, depth, []
    for place, kind in enumerate(model.layers):
        rest = len(model.layers) - place - 1
        count = left if not rest else min(max(round(kind.count * share), 1), left - rest)
        left -= count
        kinds.append(msgspec.structs.replace(kind, count=count))
    return msgspec.structs.replace(model, layers=tuple(k for k in kinds if k.count > 0), parameters=None)


def layout_of(
    of: Fields, model: Model | None, *, gpus: int, batch: int, system: str | None, year: float
) -> Layout:
    """As far as the row says it; `year` decides what is usual where it doesn't."""
    # tables of FSDP runs often leave out degrees that are 1
    alone = 1 if of.text("dp_type").lower().startswith("fsdp") else None
    tp, pp, cp = (
        of.count("tp", alone, matters=alone == 1),
        of.count("pp", alone, matters=alone == 1),
        of.count("cp", 1),
    )
    degree = tp * pp * cp
    if gpus % degree:
        of.reasons.append(f"num_gpus: {gpus} is not a multiple of tp x pp x cp = {degree}")
    dp = max(gpus // degree, 1)
    micro = of.count("micro_batch_size", 1, matters=batch > dp)
    if batch % dp:
        of.reasons.append(f"global_batch_size: {batch} is not a multiple of {dp} data-parallel replicas")
    elif batch // dp % micro:
        of.reasons.append(
            f"micro_batch_size: {batch // dp} sequences per replica are not a multiple of {micro}"
        )
    if (text := of.text("dp_type")) and not text.lower().startswith(SHARDED):
        of.reasons.append(f"dp_type: {text!r} is unknown; say ddp+dist-optimizer, zero2, fsdp, hsdp or none")
    sharding, shard = _sharding(text, system)
    virtual = of.count("vp", _deepest(model, pp), matters=pp > 1)
    ep, etp = _experts(of, model, gpus, usual_etp=tp if year < 2025.4 else 1)
    degrees = {"tp": tp, "pp": pp, "virtual": virtual, "ep": ep, "etp": etp}
    wrong = {} if model is None else undivided(model, **degrees)
    of.reasons += [f"{COLUMNS.get(name, name)}: {degrees[name]}: {text}" for name, text in wrong.items()]
    return Layout(
        gpus=gpus,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=ep,
        etp=etp if ep > 1 else 1,
        virtual=virtual if pp > 1 else 1,
        micro_batch=micro,
        sharding=sharding,
        shard=shard,
        recompute=_recompute(of),
        offload=_offload(of, 80 if model is None else model.depth),
    )


def _experts(of: Fields, model: Model | None, gpus: int, *, usual_etp: int) -> tuple[int, int]:
    """Into how many parts experts are divided, and each of them.

    Megatron's own default divides an expert as the rest is; Megatron Bridge's recipes, since 2025, don't.
    """
    experts = None if model is None else experts_of(model)
    # DeepEP is there to send tokens to experts: a table that names it and no degree divides them as far as it goes
    usual = (
        gcd(gpus, experts.count) if experts is not None and "deepep" in of.text("framework").lower() else 1
    )
    ep = of.count("ep", usual, matters=experts is not None)
    etp = of.count("etp", usual_etp if ep > 1 else 1)
    if gpus % (ep * etp):
        of.reasons.append(f"num_gpus: {gpus} is not a multiple of ep x etp = {ep * etp}")
    return ep, etp


def _deepest(model: Model | None, pp: int) -> int:
    """Chunks per stage that a table leaves open: as many as there are layers in a stage, if stages are alike."""
    depth = 1 if model is None else model.depth
    return depth // pp if depth % pp == 0 else 1


def _sharding(text: str, system: str | None) -> tuple[Sharding, int]:
    words = text.lower()
    group = re.search(r"group=(\d+)", words)
    if "shard_grad_op" in words:
        return "zero2", 0
    if words.startswith("hsdp"):
        return "fsdp", 8 if system is None else catalog.system(system).gpus
    if words.startswith(("fsdp", "zero3")):
        return "fsdp", int(group[1]) if group else 0
    if words.startswith("none"):
        return "none", 0
    return "zero2" if words.startswith("zero2") else "zero1", 0


def _recompute(of: Fields) -> frozenset[str]:
    text = of.text("recompute").lower()
    if not text:
        return frozenset()
    found: set[str] = set()
    known = columns()["recompute"]
    for word in re.split(r"[:+() ,;]+", text.split(")")[0]):
        if word in known and not (word == "selective" and re.search(r"selective[:(]", text)):
            found |= set(known[word])
    if found == {"attention"} and "torchtitan" in of.text("framework").lower():
        # torchtitan's selective recompute keeps attention, and computes every other product again
        found = set(known["per-op"])
    if not found and not text.startswith("none"):
        of.reasons.append(f"recompute: {text!r} is unknown; say none, full or selective:MODULE+MODULE")
    return frozenset(found)


def _offload(of: Fields, depth: int) -> float:
    found = re.search(r"(\d+)\s*layers", of.text("offload"))
    return 0.0 if found is None else min(int(found[1]) / depth, 1.0)


def recipe_of(of: Fields, model: Model, system: str, precision: Precision, year: float) -> Recipe:
    """As far as the row says it; the rest is what its framework did in that year."""
    family = _family(of)
    all_bf16 = "automodel" in of.text("framework").lower()
    task = of.text("task") or "pretrain"
    nic = of.positive("nic_gbps_per_gpu")
    precise = columns()["precise"].get(f"{model.name}.{precision}", {})
    return Recipe(
        system=system,
        precision=precision,
        task=_one_of(task, TASKS, of),
        family=family,
        year=year,
        graphs=_graphs(of),
        bf16_layers=precise.get("layers", 0.0),
        bf16_projections=precise.get("projections", False),
        drops="drop" in of.text("moe_routing").lower().replace("dropless", ""),
        dispatcher=_dispatcher(of, year),
        overlaps_ep=bool(re.search(r"a2a_overlap=true|ep_overlap=on", of.text("comm_overlap").lower())),
        nic_bits_per_s=None if nic is None else nic * 1e9,
        overlaps_tp=_overlaps_tp(of, family),
        document_tokens=PACKED_TOKENS if task != "pretrain" and family == "megatron" else None,
        gradient_bytes=2.0 if all_bf16 else usual_gradient_bytes(family),
        all_bf16=all_bf16,
    )


def _overlaps_tp(of: Fields, family: Family) -> bool:
    """Megatron-LM and torchtitan do it only where they are told to; NeMo's recipes, unless they are told not to."""
    words = of.text("comm_overlap").lower()
    if not usual_overlap(family):
        return "tp-comm-overlap" in words or "async_tp" in words
    return "tp_overlap=none" not in words and "tp_comm_overlap=false" not in words


def _dispatcher(of: Fields, year: float) -> Dispatcher:
    """What the table names; else what Megatron Bridge's recipes had then."""
    words = of.text("comm_overlap").lower() + of.text("framework").lower()
    if "deepep" in words or "hybridep" in words:
        return "once"
    told = "dispatcher" in words or "a2a_overlap" in words
    return "alltoall" if told or year < 2025.6 else "once"


def _graphs(of: Fields) -> Graphs:
    words = of.text("cuda_graph").lower() + of.text("comm_overlap").lower()
    if "none" in of.text("cuda_graph"):
        return "none"
    return "step" if "full" in words else "layers"


def _family(of: Fields) -> Family:
    words: dict[str, Family] = columns()["families"]
    framework = of.text("framework").lower()
    known = next((words[word] for word in words if word.lower() in framework), None)
    if known is None:
        of.assumed.append("framework")
    return known or "megatron"


def _one_of(text: str, tasks: tuple[Task, ...], of: Fields) -> Task:
    for task in tasks:
        if task == text:
            return task
    of.reasons.append(f"task: {text!r} is none of {', '.join(tasks)}")
    return "pretrain"


def unmeasured(recipe: Recipe, model: Model) -> list[str]:
    """What the recipe needs and nobody measured: its chip, its network, its precision's kernels."""
    try:
        _ = recipe.architecture, recipe.network
        chip = kernels.kernels().chip(recipe.chip)
    except RackscaleError as error:
        return [f"system: {_told(error)}"]
    kinds = [chip.gemm] if experts_of(model) is None else [chip.gemm, chip.grouped]
    if all(recipe.products in curves for curves in kinds):
        return []
    known = [
        p for p in PRECISIONS if all(replace(recipe, precision=p).products in curves for curves in kinds)
    ]
    return [
        f"precision: no {recipe.precision} products were measured on {chip.name}; {', '.join(known)} were"
    ]
