"""What DeepSpeed costs the host beside bare torch, by cause: `python tests/benchmarks/bench_zero.py [--procs 1 2 4]`.

Steps that compute next to nothing: 24 blocks (296 tensors) of width 32, one image per process, one thread each. Bare torch is
forward, backward, clipping and fused AdamW, in several processes under DistributedDataParallel. "Defaults" is DeepSpeed with
nothing but the stage, the batch and the clipping said. All take turns, step by step.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

os.environ.setdefault("LOCAL_RANK", "0")  # DeepSpeed wants it

import torch
import torch.distributed as dist
from stopwatch import Places, Stopwatch
from torch import nn

from vitscale import engine as engines
from vitscale.config import HardwareConfig, OptimConfig
from vitscale.engine import Engine, import_deepspeed
from vitscale.model.build import build
from vitscale.model.config import ViTConfig
from vitscale.model.vit import ViT
from vitscale.optim import Replicated, Stepping, param_groups
from vitscale.world import World, end_process

MODEL = ViTConfig(patch_size=8, width=32, depth=24, num_heads=2, mlp_dim=64, image_size=16, num_classes=10)
OPTIM = OptimConfig(lr=1e-3, weight_decay=0.1)
WARMUP = 5
Step = Callable[[torch.Tensor], None]


def bare(world: World) -> Step:
    model: nn.Module = build(MODEL)
    optimizer = torch.optim.AdamW(param_groups(model, OPTIM.weight_decay), lr=OPTIM.lr, fused=True)
    if world.size > 1:
        model = nn.parallel.DistributedDataParallel(model)

    def step(images_BCHW: torch.Tensor) -> None:
        model(images_BCHW).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), OPTIM.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def ours(world: World, stage: int, precision: str = "fp32") -> Step:
    hardware = HardwareConfig(device="cpu", precision=precision, zero_stage=stage)
    engine = Engine(build(MODEL), OPTIM, hardware, 1, 1, world)
    engine.set_learning_rate(OPTIM.lr)
    return lambda images_BCHW: engine.backward_and_step(engine(images_BCHW.to(engine.dtype)).float().square().mean())


def defaults(world: World, stage: int) -> Step:
    """DeepSpeed as it comes."""
    model = build(MODEL)
    optimizer = torch.optim.AdamW(param_groups(model, OPTIM.weight_decay), lr=OPTIM.lr, fused=True)
    config = {
        "train_batch_size": world.size,
        "gradient_clipping": OPTIM.clip_norm,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    deepspeed = import_deepspeed("cpu")
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)

    def step(images_BCHW: torch.Tensor) -> None:
        engine.backward(engine(images_BCHW).square().mean())
        engine.step()

    return step


def compare(world: World, rounds: int) -> None:
    """Median milliseconds of each, in turns, and the process's own CPU time."""
    steps = {"bare torch": bare(world), **{f"stage {stage}": ours(world, stage) for stage in range(4)}}
    steps |= {f"DeepSpeed's defaults, stage {stage}": defaults(world, stage) for stage in range(4)}
    images_BCHW, wall, cpu = torch.randn(1, 3, 16, 16), {name: [] for name in steps}, {name: [] for name in steps}
    for number in range(WARMUP + rounds):
        for name, step in steps.items():
            dist.barrier()
            begin, busy = time.perf_counter(), time.process_time()
            step(images_BCHW)
            if number >= WARMUP:
                wall[name].append(time.perf_counter() - begin)
                cpu[name].append(time.process_time() - busy)
    if world.is_main:
        print(f"{world.size} process(es)".ljust(36) + "  wall ms   CPU ms   against bare")
        base = statistics.median(wall["bare torch"])
        for name in steps:
            median, busy = statistics.median(wall[name]), statistics.median(cpu[name])
            print(f"  {name:32} {median * 1e3:8.2f} {busy * 1e3:8.2f} {median / base:8.2f} x", flush=True)


def places() -> Places:
    """By cause, the functions of DeepSpeed, torch and ours that it goes through."""
    import_deepspeed("cpu")
    from deepspeed.runtime import engine
    from deepspeed.runtime.zero import parameter_offload, partitioned_param_coordinator, stage3, stage_1_and_2

    one, three = stage_1_and_2.DeepSpeedZeroOptimizer, stage3.DeepSpeedZeroOptimizer_Stage3
    coordinator = partitioned_param_coordinator.PartitionedParameterCoordinator
    collectives = ("all_reduce", "reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast")
    hooks = [(one, "reduce_ready_partitions_and_remove_grads"), (three, "reduce_ready_partitions_and_remove_grads")]
    return {
        "forward": [(ViT, "forward")],
        "backward": [(torch.Tensor, "backward")],
        "hooks: a gradient into its bucket": hooks,
        "buckets: reduced, taken apart": [
            *((one, name) for name in ("average_tensor", "reduce_ipg_grads", "independent_gradient_partition_epilogue")),
            *((three, name) for name in ("independent_gradient_partition_epilogue",)),
            (engine.DeepSpeedEngine, "allreduce_gradients"),
        ],
        "norm and clipping": [
            (engines.Engine, "_global_norm"),
            *((kind, "unscale_and_clip_grads") for kind in (one, three)),
        ],
        "casts: fp32 to working weights": [
            *((one, name) for name in ("_update_model_bit16_weights", "get_flat_partition", "update_lp_params")),
            (three, "_reassign_or_swap_out_partitioned_parameters"),
            (Replicated, "spread"),
        ],
        "weights gathered and let go": [
            *((coordinator, name) for name in ("fetch_sub_module", "release_sub_module", "trace_prologue", "record_module")),
            (parameter_offload.DeepSpeedZeRoOffload, "partition_all_parameters"),
        ],
        "optimiser": [(Stepping, "step"), (Replicated, "step")],
        "collectives": [(dist, name) for name in collectives],
        "the engine's own bookkeeping": [
            *((engine.DeepSpeedEngine, name) for name in ("forward", "step")),
            (engines.Engine, "backward_and_step"),
            *((kind, "step") for kind in (one, three)),
        ],
    }


def causes(world: World, rounds: int) -> None:
    """Where the time of our steps goes, stage by stage."""
    stopwatch = Stopwatch(places())
    for stage in range(4):
        step, images_BCHW = ours(world, stage), torch.randn(1, 3, 16, 16)
        for number in range(WARMUP + rounds):
            if number == WARMUP:
                stopwatch.seconds.clear()
            step(images_BCHW)
        if world.is_main:
            print(f"{world.size} process(es), stage {stage}, by cause")
            stopwatch.print(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--procs", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--rounds", type=int, default=40, help="steps of each (default: %(default)s)")
    parser.add_argument("--worker", choices=["compare", "causes"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        with World(HardwareConfig(device="cpu"), seed=0) as world:
            torch.set_num_threads(1)
            {"compare": compare, "causes": causes}[args.worker](world, args.rounds)
        end_process(0)
    for procs in args.procs:
        for worker in ("compare", "causes"):
            launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={procs}"]
            subprocess.run([*launch, __file__, "--worker", worker, "--rounds", str(args.rounds)], check=True)


if __name__ == "__main__":
    main()
