"""The entry of every training process: `accelerate launch ... -m vitscale.train RECIPE [a.b=c ...]`."""

import os
import sys

if __name__ == "__main__":  # first of all: the imports below take seconds in which much can happen
    from vitscale import stopsignal
    from vitscale.orphan import die_with_parent

    stopsignal.remember()
    if "RANK" in os.environ:
        die_with_parent()
    if os.environ.get("RANK", "0") == "0":
        print("loading torch and deepspeed", flush=True)

import contextlib
import traceback
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_pipeline.cache import Cache
from data_pipeline.config import SourceConfig
from data_pipeline.loader import Batch, Layout, Loader, eval_loader, train_loader
from data_pipeline.manifest import read_manifest
from data_pipeline.order import Order
from data_pipeline.stream import Shards
from data_pipeline.workers import spread
from vitscale import checkpoint, failure, history, preflight, provenance, publish, recipe
from vitscale.cadence import Cadence
from vitscale.config import HardwareConfig, RunConfig, grad_accum, micro_batch
from vitscale.courier import Tracker
from vitscale.engine import Engine, import_deepspeed
from vitscale.errors import FINAL, USER_ERRORS, TrackingError
from vitscale.health import Watch
from vitscale.loop import fit
from vitscale.model.build import Model, build
from vitscale.modelinfo import ModelInfo, read_model_info
from vitscale.progress import say
from vitscale.rundir import RunDir, replace_text
from vitscale.state import TrainState
from vitscale.validation import Validation
from vitscale.weights import sharded, transfer
from vitscale.world import World, end_process, is_consequence


def main(cfg: RunConfig) -> None:
    """Run a recipe from where it stands to its end. Call on every rank."""
    with World(cfg.hardware, cfg.seed) as world, told(run := RunDir(cfg), world):
        if world.any(world.stop_requested):
            stop_at_once(run, world)
            return
        import_deepspeed(world.device.type)
        world.phases.part("deepspeed")
        say(f"{cfg.name}: {world.size} {'process is' if world.size == 1 else 'processes are'} up", world.is_main)
        open_run(run, cfg, world)
        world.phases.part("checks")
        with Tracker(cfg, run, world.is_main) as tracker:
            with Watch(world, run, cfg.hardware.hang_after_s):
                state, finished = train(cfg, run, tracker, world)
            with world.alone():
                if world.is_main:
                    finish(cfg, run, tracker, state, finished, world.stop_reason)
                    run.release()


@contextlib.contextmanager
def told(run: RunDir, world: World) -> Iterator[None]:
    """Whatever goes wrong here on this rank is written down, if it is the first: the log of a large run is long."""
    try:
        yield
    except Exception as error:
        if not is_consequence(error) and (run.owned or not world.is_main):
            stack = "" if isinstance(error, USER_ERRORS) else f"\n{traceback.format_exc()}"
            where = failure.place(world.rank, world.phases.step, world.phases.name)
            if failure.note(run.path, where, f"{type(error).__name__}: {error}{stack}"):
                with contextlib.suppress(OSError):  # of a full disk, say; the error itself counts
                    run.write_status("failed", error=str(error), final=isinstance(error, FINAL))
        raise


def stop_at_once(run: RunDir, world: World) -> None:
    """The end of a run that was asked to stop before it began. Call on every rank."""
    with world.alone():
        if world.is_main:
            run.claim()
            run.write_status("stopped", reason=world.stop_reason)
            run.release()


def train(cfg: RunConfig, run: RunDir, tracker: Tracker, world: World) -> tuple[TrainState, bool]:
    """From the last checkpoint to the end, or to a stop: where it then stands, and whether all is done."""
    shards, validation = open_shards(cfg.data.train, cfg.hardware), build_validation(cfg, world)
    cadence = Cadence.of(cfg, len(shards))
    engine = build_engine(build_model(cfg, run, world), cfg, world)
    world.phases.part("build")
    state = checkpoint.restore(run, engine, shards.digest)
    world.phases.part("load")
    world.phases.take_up(state)
    note_start(cfg, run, state, tracker, world)
    announce(cfg, run, state, cadence, engine)
    batches = Started(build_train_loader(shards, cfg, state.step, cadence.total, world), cfg, world)
    return state, fit(cfg, cadence, engine, batches, shards, validation, state, run, tracker)


def note_start(cfg: RunConfig, run: RunDir, state: TrainState, tracker: Tracker, world: World) -> None:
    """For MLflow: at which step, where, with which code and data, and how the start before ended. Call on every rank."""
    hosts = world.gather(failure.host())
    if world.is_main:
        try:
            noted = provenance.note(cfg, run)
            ended = run.status.get("ended", "first start")
            tracker.note_start(step=state.step, processes=world.size, reason=ended, nodes=sorted({*hosts}), **noted)
        except OSError as error:
            say(f"warning: {run.path}: {error.strerror}; training goes on, MLflow will not know of this start")


def open_run(run: RunDir, cfg: RunConfig, world: World) -> None:
    """Check everything, own the run directory, and bring the pretrained weights there; rank 0 does it for all."""
    with world.alone():
        if world.is_main:
            run.claim()
            preflight.check(cfg, world.size, os.environ)
            replace_text(run.recipe, recipe.dump(cfg))
            classes = list(read_manifest(cfg.data.train[0].manifest).classes)
            replace_text(run.model_info, ModelInfo.of(cfg.model, cfg.data, classes).dump())
            run.write_status("running", trained=False)


def build_model(cfg: RunConfig, run: RunDir, world: World) -> Model:
    """The model as initialised, on top of it the pretrained weights where the recipe names some."""
    model = build(cfg.model)
    if cfg.init:
        pretrained = read_model_info(run.init).model
        fates = transfer.transfer(model, sharded.read(run.init), pretrained, cfg.init.pos_embed, cfg.init.head)
        if world.is_main:
            replace_text(run.transfer, transfer.table(fates) + "\n")
        say(f"{cfg.name}: from {cfg.init.source}: {transfer.summarise(fates)}; every tensor in {run.transfer}", world.is_main)
    return model


def build_engine(model: Model, cfg: RunConfig, world: World) -> Engine:
    """One process has nothing to shard, and is spared what sharding costs."""
    micro, accum = micro_batch(cfg, world.size), grad_accum(cfg, world.size)
    alone = cfg.hardware.model_copy(update={"zero_stage": 0})
    return Engine(model, cfg.optim, cfg.hardware if world.size > 1 else alone, micro, accum, world)


def open_shards(sources: Sequence[SourceConfig], hardware: HardwareConfig) -> Shards:
    """The shards of all sources, in their order."""
    cache = Cache(Path(hardware.cache_dir).expanduser(), round(hardware.cache_gib * 2**30)) if hardware.cache_dir else None
    return Shards([read_manifest(source.manifest) for source in sources], cache)


def build_train_loader(train: Shards, cfg: RunConfig, start: int, stop: int, world: World) -> Iterable[Batch]:
    """This rank's share of steps [start, stop)."""
    sizes = [manifest.samples for manifest in train.manifests]
    block, weights = cfg.data.shuffle_block, cfg.data.source_weights
    order = Order(sizes, cfg.train.global_batch, cfg.lanes, block, cfg.seed, weights, cfg.data.repeated)
    size, classes, numbers = cfg.model.image_size, cfg.model.num_classes, range(start, stop)
    make = partial(train_loader, train, order, cfg.data, size, classes, cfg.seed, numbers)
    mine, processes = layout(cfg, world), cfg.hardware.loader_processes
    if processes is None:
        processes = mine.threads if world.device.type == "cuda" else 0
    return spread(make, mine, order, cfg.data.mix_group if cfg.data.augment.mixes else 1, processes)


def build_validation(cfg: RunConfig, world: World) -> Validation:
    """This rank's share of all held-out images."""

    def loader(source: SourceConfig, num_classes: int | None, first: int | None = None) -> Loader:
        shards, size = open_shards([source], cfg.hardware), cfg.model.image_size
        classes = num_classes or shards.manifests[0].num_labels
        return eval_loader(shards, cfg.data, size, cfg.eval.batch, classes, layout(cfg, world), first)

    val = loader(cfg.data.val, cfg.model.num_classes) if cfg.data.val else None
    sets = {
        name: (loader(SourceConfig(manifest=few.train), None, few.max_train), loader(SourceConfig(manifest=few.test), None))
        for name, few in cfg.eval.fewshot.items()
    }
    return Validation(cfg, val, sets)


def layout(cfg: RunConfig, world: World) -> Layout:
    """Which share of the data this rank takes, and what decodes it."""
    return Layout(world.rank, world.size, cfg.hardware.loader_threads or world.cores, pin=world.device.type == "cuda")


def announce(cfg: RunConfig, run: RunDir, state: TrainState, cadence: Cadence, engine: Engine) -> None:
    """One line that says what is about to happen."""
    if state.step < (before := run.status.get("checkpoint", 0)):
        say(
            f"warning: {run.checkpoints}: step {before:,} was saved there, and is gone; "
            f"{'it goes on from an earlier one' if state.step else 'the run starts anew'}",
            engine.world.is_main,
        )
    parameters = sum(shape.numel() for shape in engine.shapes.values())
    start = f"continues at step {state.step:,}" if state.step else "starts"
    say(
        f"{cfg.name}: {start} of {cadence.total:,}; {parameters:,} parameters, global batch {cfg.train.global_batch} = "
        f"{engine.world.size} processes x micro-batch {engine.micro_batch} x accumulation {engine.grad_accum}, "
        f"ZeRO-{engine.stage}, {cfg.hardware.precision} on {engine.world.device.type}",
        engine.world.is_main,
    )


@dataclass(frozen=True)
class Started:
    """The same batches; after the first step a line that says what the start took, part by part."""

    batches: Iterable[Batch]
    cfg: RunConfig
    world: World

    def __iter__(self) -> Iterator[Batch]:  # who iterates owns the loader's threads, and ends them
        for number, batch in enumerate(self.batches):
            if number == 0:
                self.world.phases.part("first batch")
            yield batch
            if number == 0:
                self.world.phases.part("first step, compiling" if self.cfg.hardware.compile else "first step")
                parts = self.world.phases.start_s
                listed = ", ".join(f"{name} {seconds:.1f}" for name, seconds in parts.items())
                say(f"{self.cfg.name}: first step done after {sum(parts.values()):.1f} s: {listed}", self.world.is_main)


def finish(cfg: RunConfig, run: RunDir, tracker: Tracker, state: TrainState, finished: bool, reason: str) -> None:
    """Close the history, publish where the recipe asks for it, and write down how it ended. Rank 0 only."""
    metrics = history.last_metrics(run.metrics)
    if not finished:  # first of all: whoever asked for the stop may not wait long
        run.write_status("stopped", step=state.step, reason=reason, metrics=metrics)
        say(f"{cfg.name}: stopped at step {state.step:,} ({reason})")
        tracker.close("KILLED")
        return
    run.write_status(trained=True)
    tracker.close("FINISHED")
    model = publish_last(cfg, run, tracker.uri) if cfg.publish else None
    run.write_status("finished", step=state.step, model=model, metrics=metrics)
    top1 = f", top-1 {metrics['eval/top1']:.4f}" if "eval/top1" in metrics else ""
    published = f"; published as {model}" if model else ""
    say(f"{cfg.name}: finished at step {state.step:,}{top1}{published}")


def publish_last(cfg: RunConfig, run: RunDir, uri: str) -> str:
    """The last checkpoint, and the best, into the registry; returns the URI under the last one's alias."""
    assert cfg.publish
    try:
        if not run.mlflow_run_id.exists():
            raise TrackingError(f"MLflow at {uri} did not answer")
        publish.publish_due(run, cfg, uri, run.mlflow_run_id.read_text(), finished=True)
    except TrackingError as error:
        raise TrackingError(f"publish: {error}; training is complete, nothing is lost; start it again to publish") from error
    return f"models:/{cfg.publish.name}@{cfg.publish.alias}"


def run_from_command_line() -> int:
    """Exit status 0 = finished or stopped in good order, 1 = an error, said in one paragraph where the user can mend it."""
    try:
        main(recipe.load(sys.argv[1], sys.argv[2:]))
    except USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    except Exception as error:
        if not is_consequence(error):
            raise
        return 1
    return 0


if __name__ == "__main__":
    end_process(run_from_command_line())
