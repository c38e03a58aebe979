"""The training loop: one for pretraining and fine-tuning, on one process or many."""

import functools
import math
import warnings
from collections import ChainMap
from collections.abc import Callable, Iterable

import torch

from data_pipeline.draw import Purpose, words
from data_pipeline.loader import Batch, blank
from data_pipeline.mixing import prepare
from data_pipeline.noise import splitmix64, uniform_noise
from data_pipeline.order import Slots
from data_pipeline.stream import Shards
from vitscale import machine
from vitscale.badsteps import BadSteps
from vitscale.cadence import Cadence
from vitscale.config import RunConfig
from vitscale.courier import Tracker
from vitscale.engine import Engine
from vitscale.ledger import Ledger
from vitscale.loss import LOSSES
from vitscale.meter import Meter, peak_memory_gib
from vitscale.model.config import ViTConfig
from vitscale.modelinfo import read_model_info
from vitscale.progress import TrainProgress, say
from vitscale.readings import Reading, Readings
from vitscale.rundir import RunDir
from vitscale.saving import Saver
from vitscale.state import TrainState
from vitscale.tally import Tally
from vitscale.validation import Validation
from vitscale.world import World


def fit(
    cfg: RunConfig,
    cadence: Cadence,
    engine: Engine,
    batches: Iterable[Batch],
    shards: Shards,
    validation: Validation,
    state: TrainState,
    run: RunDir,
    tracker: Tracker,
) -> bool:
    """Train until the last step, or a stop that all ranks agree on; True = all is done. Call on every rank."""
    world, meter = engine.world, Meter.of(cfg, engine.world)
    readings, lag = Readings(world, cfg.train.global_batch), int(world.device.type == "cuda")  # a CPU has its numbers at once
    ledger = Ledger(run.ledger, cfg.data.bad_samples, world, state.step)
    bad_steps = BadSteps(run.bad_steps, cfg.train.max_bad_steps, shards, world, state.step)
    saver, saved = Saver(run, engine, cfg.checkpoint, cadence.keep), state.step
    evaluate_owed(engine, validation, state, tracker, run)
    with TrainProgress(cfg.name, state.step, cadence.total, world.is_main) as progress, saver:
        for batch in meter.waiting(world.or_none(batches, cadence.total - state.step)):
            readings.add(train_step(engine, batch, cfg, state.step, cadence), batch, state)
            meter.step()
            last = state.step == cadence.total
            log_now, eval_now, save_now = (last or due(state.step, n) for n in (cadence.log, cadence.eval, cadence.save))
            settle(readings, ledger, bad_steps, state, keep=0 if log_now or eval_now or save_now else lag)
            if world.stopping:
                break
            if progress.is_due(state.step):
                left_s = meter.seconds_left(cadence.total - state.step)
                progress.update(state.step, readings.latest, meter.images_per_s(), left_s)
            if log_now or save_now:
                ledger.settle(state)
            if log_now:
                loss, samples, load = gather(readings, state)
                point = {**report(loss, readings.grad_norm, state, meter, cfg, cadence), **load}
                tracker.log(state.step, "train", point, samples)
            if eval_now:
                state.owes_eval = not validation.is_empty
                evaluate_owed(engine, validation, state, tracker, run)
            if save_now:
                save(saver, readings, state, tracker, last)
                saved = state.step
        if saved < state.step:  # stopped in between
            settle(readings, ledger, bad_steps, state, keep=0)
            ledger.settle(state)
            save(saver, readings, state, tracker, last=True)
        saver.settle(last=True)
    return state.step == cadence.total and not state.owes_eval


def train_step(engine: Engine, batch: Batch | None, cfg: RunConfig, step: int, cadence: Cadence) -> Reading:
    """The update after `step` of them, from one rank's share of a global batch: its loss and gradient norm on their way.

    A rank without a batch takes part with gradients that are not finite, so that no rank updates anything.
    """
    engine.set_learning_rate(cadence.learning_rate(step, cfg.optim))
    given, losses = batch or blank(engine.micro_batch * engine.grad_accum, cfg.model.image_size), []
    for micro_step, micro in enumerate(given.split(engine.micro_batch)):
        seed_dropout(cfg, step, engine.world, micro_step)
        on_device, smoothing = micro.to(engine.world.device), cfg.train.label_smoothing
        ready = preparation(cfg.hardware.compile)
        images, targets = ready(on_device, cfg.data, cfg.model.num_classes, engine.dtype, smoothing)
        logits = engine(images, *drop_path_chance(micro.slots, cfg, engine.world.device))
        loss = LOSSES[cfg.train.loss](logits, targets).mean()
        engine.backward_and_step(loss if batch else loss * math.nan)
        losses.append(loss.detach())
        engine.world.phases.enter(engine.world.phases.name)  # a sign of life: steps of many micro-steps can be long
    return Reading(torch.stack(losses).mean() if len(losses) > 1 else losses[0], engine.grad_norm)


@functools.cache
def preparation(compiled: bool) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """`prepare`; compiled into one pass over the pixels instead of a dozen, equal to rounding."""
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")  # what they keep becomes constants
    return torch.compile(prepare, dynamic=False) if compiled else prepare


def seed_dropout(cfg: RunConfig, step: int, world: World, micro_step: int) -> None:
    """Dropout masks follow from (seed, step, rank, micro-step): the same after a restart, not on another layout."""
    if isinstance(cfg.model, ViTConfig) and cfg.model.dropout > 0.0:
        world.generator.manual_seed(int(words(1, cfg.seed, Purpose.DROPOUT, step, world.rank, micro_step)[0] >> 1))


def drop_path_chance(slots: Slots, cfg: RunConfig, device: torch.device) -> tuple[torch.Tensor, ...]:
    """What decides which image skips which branch, if any does: keyed by (seed, epoch, sample), so equal on every layout."""
    if not isinstance(cfg.model, ViTConfig) or cfg.model.drop_path == 0.0:
        return ()
    key = int(words(1, cfg.seed, Purpose.DROP_PATH).view("int64")[0])
    epoch_B, sample_B = (torch.from_numpy(column) for column in slots)
    word_B = splitmix64(splitmix64(epoch_B + key) + sample_B).to(device, non_blocking=True)
    return (uniform_noise(word_B, cfg.model.depth, 2),)


def settle(readings: Readings, ledger: Ledger, bad_steps: BadSteps, state: TrainState, keep: int) -> None:
    """Take in the numbers of the steps just made, but for the newest `keep`. Call on every rank."""
    for made in readings.settle(state, keep):
        ledger.note(made)
        bad_steps.note(made, state)


def report(loss: float, norm: float, state: TrainState, meter: Meter, cfg: RunConfig, cadence: Cadence) -> dict[str, float]:
    """One point of the training curves, over the steps since the last one."""
    state.loss_sum, state.loss_steps = 0.0, 0
    lr = cadence.learning_rate(state.step - 1, cfg.optim)
    skipped = {"data/skipped": state.skipped} if cfg.data.bad_samples.policy == "replace" else {}
    return {
        "train/loss": loss,
        "train/lr": lr,
        "train/grad_norm": norm,
        "train/skipped_updates": len(state.bad_steps),
        **skipped,
        **meter.report(cadence.total - state.step),
        "memory/peak_gib": peak_memory_gib(),
    }


def save(saver: Saver, readings: Readings, state: TrainState, tracker: Tracker, last: bool) -> None:
    """Begin to write a checkpoint. Call on every rank."""
    world = readings.world
    readings.hash(state)
    with world.phases.during("checkpoint"):
        state.seconds = world.phases.seconds()
        saver.save(state, last)
        tracker.log(state.step, "checkpoint", saver.times)
        if "checkpoint/write_s" in saver.times:
            world.save_s = sum(saver.times.values())


def gather(readings: Readings, state: TrainState) -> tuple[float, str, dict[str, float]]:
    """The mean loss since the last point of the curves, the running hash of all samples consumed by all ranks, and how busy
    each machine is. Call on every rank."""
    readings.hash(state)
    load = machine.load() if readings.world.local_rank == 0 else {}
    losses, fingerprints, loads = zip(*readings.world.gather((state.loss_sum, state.fingerprint, load)), strict=True)
    mean = math.fsum(losses) / readings.world.size / state.loss_steps if state.loss_steps else math.nan
    return mean, f"{sum(fingerprints) % 2**64:016x}", dict(ChainMap(*loads))


def evaluate_owed(engine: Engine, validation: Validation, state: TrainState, tracker: Tracker, run: RunDir) -> None:
    """Evaluate where that is due; cut short by a stop it stays due, for the next start. Call on every rank."""
    if not state.owes_eval or validation.is_empty:
        return
    with engine.world.phases.during("eval"):
        verdict = validation.judge(engine)
        if engine.world.stopping:
            return
        state.scores[state.name], state.owes_eval = verdict.scores, False
        if engine.world.is_main:
            write_tallies(verdict.tallies, run, state.step)
    tracker.log(state.step, "eval", state.scores[state.name])


def write_tallies(tallies: dict[str, Tally], run: RunDir, step: int) -> None:
    """The files of an evaluation; without room for them training goes on."""
    classes = read_model_info(run.path).classes
    try:
        for prefix, tally in tallies.items():
            tally.write(run.artifacts / prefix / f"step_{step:08d}", classes)
    except OSError as error:
        say(f"warning: {run.artifacts}: accuracy by class cannot be written ({error}); training goes on")


def due(step: int, every: int) -> bool:
    """Whether something that happens `every` so many steps (0 = never) happens now."""
    return every > 0 and step % every == 0
