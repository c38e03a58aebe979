"""A case of worker.py: bytes that engines hold between steps, and the most within a step, as torch's profiler counts them."""

import gc
import json
import tempfile
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from vitscale.config import RunConfig
from vitscale.engine import Engine
from vitscale.model.build import build
from vitscale.model.config import ViTConfig
from vitscale.train import build_engine
from vitscale.world import World

MODEL = ViTConfig(patch_size=8, width=128, depth=4, num_heads=4, mlp_dim=512, image_size=32, num_classes=100)
STAGES = (0, 1, 2, 3)
SETTINGS = {  # precision, micro-batch, accumulation, checkpointing, optimiser
    "bf16 accumulated": ("bf16", 16, 2, 0, {"ema_decay": 0.9}),
    "checkpointed": ("fp32", 48, 1, 1, {"moment_dtype": "bf16"}),
}


def changed(base: RunConfig, name: str, stage: int, ranks: int) -> RunConfig:
    """The recipe of a setting."""
    precision, micro, accum, checkpointing, optim = SETTINGS[name]
    hardware = {"precision": precision, "micro_batch": micro, "zero_stage": stage, "activation_checkpointing": checkpointing}
    return base.model_copy(
        update={
            "model": MODEL,
            "optim": base.optim.model_copy(update=optim),
            "hardware": base.hardware.model_copy(update=hardware),
            "train": base.train.model_copy(update={"global_batch": micro * accum * ranks}),
        }
    )


def memories(base: RunConfig, world: World) -> dict:
    """Bytes at rest and the most on top of them, per setting and stage; elements that each step sends, by collective."""
    torch.set_num_threads(1)
    return {name: [measured(changed(base, name, stage, world.size), world) for stage in STAGES] for name in SETTINGS}


def measured(cfg: RunConfig, world: World) -> dict:
    before = living()
    engine = build_engine(build(cfg.model), cfg, world)
    step(engine)
    rest = living() - before
    profiles = [profiled(engine) for _ in range(8)]
    peak = min(map(peak_of, profiles))  # now and then gloo's threads still hold a bucket while the next is there
    return {"rest": rest, "peak": peak, "sent": sent(profiles[0])}


def living() -> int:
    """Bytes of all tensors."""
    gc.collect()
    storages = (thing.untyped_storage() for thing in gc.get_objects() if issubclass(type(thing), torch.Tensor))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def step(engine: Engine) -> None:
    for _ in range(engine.grad_accum):
        size = MODEL.image_size
        logits = engine(torch.zeros(engine.micro_batch, 3, size, size, dtype=engine.dtype))
        targets = torch.zeros(logits.shape)
        engine.backward_and_step(torch.nn.functional.cross_entropy(logits.float(), targets))
        del logits, targets


def profiled(engine: Engine) -> list[dict]:
    """The events of a step."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, record_shapes=True) as prof:
        step(engine)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        prof.export_chrome_trace(str(path))
        return json.loads(path.read_text())["traceEvents"]


def peak_of(events: list[dict]) -> int:
    """Of the running sum of what was allocated and freed."""
    now = most = 0
    for event in sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"]):
        now += event["args"]["Bytes"]
        most = max(most, now)
    return most


def sent(events: list[dict]) -> dict[str, int]:
    """Bytes that this rank handed to each collective."""
    sizes = {"float": 4, "c10::BFloat16": 2, "double": 8, "long int": 8, "unsigned char": 1}
    found: dict[str, int] = {}
    for event in events:
        if event["name"].startswith("gloo:") and (dims := event["args"]["Input Dims"]):
            elements = sum(torch.Size(shape).numel() for shape in dims if shape)
            name, element = event["name"].removeprefix("gloo:"), sizes[event["args"]["Input type"][0]]
            found[name] = found.get(name, 0) + elements * element
    return found
