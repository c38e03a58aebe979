"""What a recipe would cost on a cluster, worked out without a GPU and without data; and the layout to take."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from launcher import cluster as clusters
from launcher.cluster import Cluster
from vitscale import show
from vitscale.config import RunConfig, micro_batch, per_rank_batch
from vitscale.devices import DEVICES, USABLE
from vitscale.errors import RecipeError
from vitscale.memory import MAX_LIVE_ELEMENTS, Activations, Memory, activations, kept_bytes, memory, num_parameters, sizes
from vitscale.model.config import ViTConfig
from vitscale.model.flops import encoder_macs, forward_macs, train_flops
from vitscale.optim import DTYPES

MFU = 0.38  # of the stated peak: the best published training of a ViT on Hopper that was found
LINK_SHARE = 0.8  # of a link's rate that collectives reach
IMAGES_PER_CORE_S = 650  # of our loader, photos of 500 x 375 pixels to 224 (docs/benchmarks.md)
# Of the host per tensor of weights and micro-step, by stage: measured on one busy CPU core (docs/benchmarks.md).
HOST_S = (0.14e-3, 0.22e-3, 0.23e-3, 0.58e-3)
CLEARLY = 1.03  # a higher stage must be faster by this factor to be recommended
ASSUMPTIONS = (
    f"compute: {MFU:.0%} of the stated peak, the best published training of a ViT on Hopper (in bf16) that was found",
    f"network: rings that reach {LINK_SHARE:.0%} of the slowest link; nothing is sent while anything is computed",
    "update: each fp32 weight and its state are read and written once",
    "host: its work goes on beside the GPU's; its time is that of one busy CPU core (docs/benchmarks.md)",
    f"memory: {USABLE:.0%} of it is ours, the rest is CUDA's and NCCL's",
    f"loaders: {IMAGES_PER_CORE_S} images per second and core (photos of 500 x 375 pixels, docs/benchmarks.md)",
    "time: that of the steps alone, without evaluation, checkpoints and waiting in the queue",
)


class Layout(NamedTuple):
    """A run at one ZeRO stage."""

    zero_stage: int
    micro_batch: int
    grad_accum: int
    memory: Memory
    fits: bool
    sent_bytes: int  # by each process in a step
    compute_s: float
    network_s: float
    update_s: float
    host_s: float
    largest_micro_batch: int = 0  # that fits; 0 = none does

    @property
    def step_s(self) -> float:
        return max(self.compute_s + self.network_s + self.update_s, self.host_s)


def check_memory(cfg: RunConfig, cluster: Cluster) -> None:
    """RecipeError where the recipe cannot run on the cluster, or its GPUs, if they are known, have too little memory."""
    clusters.check(cfg, cluster)
    if cluster.gpu is None:
        return
    stage = cfg.hardware.zero_stage if cluster.world_size > 1 else 0
    held, device = activations(cfg), DEVICES[cluster.gpu]
    found = layout(cfg, cluster, stage, micro_batch(cfg, cluster.world_size), held)
    if not found.fits:
        largest = largest_fitting(cfg, cluster, stage, held)
        way_out = f"use hardware.micro_batch={largest}, or" if largest else "no micro-batch fits;"
        raise RecipeError(
            f"hardware.micro_batch: {found.micro_batch} images at a time need {found.memory.total / 2**30:.1f} GiB per GPU at "
            f"hardware.zero_stage {stage}, of the {device.memory_gib} GiB of an {cluster.gpu} "
            f"{device.usable_bytes / 2**30:.1f} are usable; {way_out} hardware.activation_checkpointing=1, or more GPUs and a "
            "higher hardware.zero_stage (`vitscale plan` shows them all)"
        )


def plan(cfg: RunConfig, cluster: Cluster) -> dict[str, Any]:
    """All numbers by name; `layouts` has one entry per ZeRO stage (one process has nothing to shard), the recommended one is
    `recommended`."""
    clusters.check(cfg, cluster)
    if cluster.gpu is None:
        raise RecipeError(f"plan: the cluster file names no gpu; add `gpu: h200`, or another of {', '.join(DEVICES)}")
    ranks, held = cluster.world_size, activations(cfg)
    layouts = [best_layout(cfg, cluster, stage, held) for stage in range(4 if ranks > 1 else 1)]
    chosen, count = recommend(layouts), num_parameters(cfg.model)
    numbers = show.derived(cfg, ranks)
    step_s, steps = chosen.step_s if chosen else None, numbers["steps"]
    rate = cfg.train.global_batch / step_s if step_s else None
    weights = 8 if cfg.optim.ema_decay is not None else 4
    return {
        "cluster": f"{cluster.nodes} nodes x {cluster.procs} {cluster.gpu}",
        "parameters": count,
        "training GFLOPs per image": numbers["training GFLOPs per image"],
        "steps": steps,
        "global batch": cfg.train.global_batch,
        "layouts": [{**found._asdict(), "memory": found.memory._asdict(), "step_s": found.step_s} for found in layouts],
        "recommended": chosen.zero_stage if chosen else None,
        "advice": advice(layouts, chosen),
        "images per second": rate,
        "loader cores per node": rate / cluster.nodes / IMAGES_PER_CORE_S if rate else None,
        "checkpoint bytes": count * (kept_bytes(cfg.optim) + weights),
        "days": steps * step_s / 86_400 if steps and step_s else None,
        "GPU-hours": steps * step_s / 3600 * ranks if steps and step_s else None,
        "assumptions": list(ASSUMPTIONS),
    }


def best_layout(cfg: RunConfig, cluster: Cluster, stage: int, held: Activations) -> Layout:
    """With the recipe's micro-batch, or the largest that fits where that does not."""
    wanted, largest = micro_batch(cfg, cluster.world_size), largest_fitting(cfg, cluster, stage, held)
    found = layout(cfg, cluster, stage, min(wanted, largest) if largest else wanted, held)
    return found._replace(largest_micro_batch=largest)


def layout(cfg: RunConfig, cluster: Cluster, stage: int, micro: int, held: Activations) -> Layout:
    ranks, device = cluster.world_size, DEVICES[cluster.gpu or ""]
    accum = per_rank_batch(cfg, ranks) // micro
    need = memory(cfg, stage, ranks, micro, accum, held)
    passes = {"all-reduce": 2, "reduce-scatter": 1, "all-gather": 1}  # of the whole tensor, round a ring
    sent = sum(passes[kind] * whole for kind, whole in collectives(cfg, stage, accum)) * (ranks - 1) / ranks
    link = min(cluster.intra_gbyte_s, cluster.network_gbit_s / 8) if cluster.nodes > 1 else cluster.intra_gbyte_s
    stepped = num_parameters(cfg.model) / (ranks if stage else 1) * kept_bytes(cfg.optim)
    fits = need.total <= device.usable_bytes
    peak = 1e12 * (cfg.hardware.peak_tflops or device.tflops[cfg.hardware.precision])
    compute_s, network_s = step_flops(cfg) / (ranks * peak * MFU), sent / (link * 1e9 * LINK_SHARE)
    update_s, host_s = 2 * stepped / (device.memory_tbyte_s * 1e12), HOST_S[stage] * len(sizes(cfg.model)) * accum
    return Layout(stage, micro, accum, need, fits, round(sent), compute_s, network_s, update_s, host_s)


def largest_fitting(cfg: RunConfig, cluster: Cluster, stage: int, held: Activations) -> int:
    """The largest micro-batch that fits; 0 = none does."""
    share, group = per_rank_batch(cfg, cluster.world_size), cfg.data.mix_group if cfg.data.augment.mixes else 1
    allowed = [size for size in range(group, share + 1, group) if share % size == 0]
    fitting = [size for size in allowed if layout(cfg, cluster, stage, size, held).fits]
    return max(fitting, default=0)


def collectives(cfg: RunConfig, stage: int, accum: int) -> list[tuple[str, int]]:
    """What a step exchanges: bytes of the whole tensor per kind. Stage 0 sums in fp32, the others in the working type.

    Stages 1 and 2 sum whole buckets on every rank, though each needs its part alone. Stage 3 gathers once per micro-step what
    it may keep, else before each use.
    """
    count, element = num_parameters(cfg.model), DTYPES[cfg.hardware.precision].itemsize
    whole, gathers = element * count, accum if count <= MAX_LIVE_ELEMENTS else 2 * accum
    return {
        0: [("all-reduce", 4 * count)],
        1: [("all-reduce", whole), ("all-gather", whole)],
        2: [("all-reduce", accum * whole), ("all-gather", whole)],
        3: [("reduce-scatter", accum * whole), ("all-gather", gathers * whole)],
    }[stage]


def step_flops(cfg: RunConfig) -> int:
    """Of a global batch, with what checkpointed blocks compute again."""
    flops, every = train_flops(cfg.model), cfg.hardware.activation_checkpointing
    if every:
        flops += 2 * (encoder_macs(cfg.model) if isinstance(cfg.model, ViTConfig) else forward_macs(cfg.model)) // every
    return flops * cfg.train.global_batch


def recommend(layouts: Sequence[Layout]) -> Layout | None:
    """The lowest stage that fits and is not clearly slower than another; None = none fits."""
    fitting = [found for found in layouts if found.fits]
    fastest = min((found.step_s for found in fitting), default=0.0)
    return next((found for found in fitting if found.step_s <= CLEARLY * fastest), None)


def advice(layouts: Sequence[Layout], chosen: Layout | None) -> str:
    """What to set, and what the other stages would cost."""
    if chosen is None:
        return "nothing: no stage fits"
    plain, *others = layouts
    slower = [f"ZeRO-{n.zero_stage} by {n.step_s / plain.step_s - 1:.1%}" for n in others if n.step_s > plain.step_s]
    without = "; plain data parallel fits, ZeRO is not needed for memory" if plain.fits else ""
    than = f"; slower than it: {', '.join(slower)}" if plain.fits and slower else ""
    return f"use hardware.zero_stage={chosen.zero_stage} hardware.micro_batch={chosen.micro_batch}{without}{than}"


def lines(found: dict[str, Any]) -> Iterator[str]:
    """The same for people."""
    total = f"{found['steps']:,} steps" if found["steps"] else "unknown steps (state data.train.samples)"
    yield (
        f"{found['cluster']}: {found['parameters']:,} parameters, {found['training GFLOPs per image']:,.1f} training GFLOPs "
        f"per image, {total} of {found['global batch']:,} images"
    )
    yield (
        f"{'':6}{'micro-batch':>12}{'largest':>9}  {'states':>8}{'+ activations':>14}{'+ buffers':>10}{'= GiB per GPU':>14}"
        f"  {'sent MB':>8}  {'compute':>8}{'+ network':>10}{'+ update':>9}{'or host':>9}{'= ms':>8}"
    )
    yield from map(_row, found["layouts"])
    yield f"recommended: {found['advice']}"
    yield f"a checkpoint: {found['checkpoint bytes'] / 1e9:.2f} GB"
    if rate := found["images per second"]:
        yield f"{rate:,.0f} images per second; loaders need {found['loader cores per node']:.0f} cores per node"
    if found["days"]:
        yield f"{found['days']:.1f} days, {found['GPU-hours']:,.0f} GPU-hours"
    yield from (f"assumed: {assumption}" for assumption in found["assumptions"])


def _row(entry: dict[str, Any]) -> str:
    states, held, buffers = (size / 2**30 for size in entry["memory"].values())
    times = (entry[key] for key in ("compute_s", "network_s", "update_s", "host_s", "step_s"))
    compute, network, update, host, step = (f"{seconds * 1e3:.1f}" for seconds in times)
    largest = entry["largest_micro_batch"] or "none"
    return (
        f"ZeRO-{entry['zero_stage']}{entry['micro_batch']:>12}{largest:>9}  {states:>8.2f}{held:>14.2f}{buffers:>10.2f}"
        f"{states + held + buffers:>14.2f}  {entry['sent_bytes'] / 1e6:>8,.0f}  "
        f"{compute:>8}{network:>10}{update:>9}{host:>9}{step:>8}"
    )
