"""Checkpoints to the MLflow model registry, as plain files with their SHA-256 sums; no pickle."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from vitscale import fault
from vitscale.artifacts import Artifacts
from vitscale.card import card, measured
from vitscale.config import PublishConfig, RunConfig, TrackingConfig, alias_name, registered_name
from vitscale.errors import ModelError, UserError
from vitscale.modelinfo import read_model_info
from vitscale.progress import say
from vitscale.registry import DIGEST, Version, crown, discard, retain, score_tag, version_of, versions_of
from vitscale.retention import best, complete, read_state, scores_of
from vitscale.rundir import RunDir, replace_text
from vitscale.serving import write_flavour
from vitscale.sums import SUMS, read_sums, sha256, write_sums
from vitscale.tracking import connect, experiment_id, is_known, mlflow_errors, reason, without_secrets

PUBLISHED = "published.json"  # in a run directory: what was done, by role
TAKEN = re.compile(r"(weights|ema)(-.*)?\.safetensors(\.index\.json)?|model\.json|state\.json")  # of a checkpoint


def publish(
    checkpoint: Path, name: str, alias: str | None, uri: str, run_id: str | None, licence: str | None = None
) -> Version:
    """Register a checkpoint's weights as a version of model `name`, then point `alias` at it.

    A version exists when all its files were fetched again and their sums hold; the alias moves last. What an earlier call for
    this run and content has stored is used again, so that a killed one can be repeated and a damaged copy is mended.
    """
    registered_name(name)
    if alias:
        alias_name(alias)
    with mlflow_errors(uri), tempfile.TemporaryDirectory() as folder:
        client = connect(uri)
        if run_id and not is_known(client, run_id):
            say(f"note: MLflow at {without_secrets(uri)} does not have the run of {checkpoint}; published without a link to it")
            run_id = None
        content = _content(checkpoint, name, licence, Path(folder))
        digest = sha256(Path(folder) / SUMS)
        model_id = _logged_model(client, name, uri, run_id, digest)
        _send(Artifacts(client, model_id), content)
        fault.at("publish.uploaded")
        version = _register(client, checkpoint, Version(name, "", model_id, run_id, digest))
        fault.at("publish.registered")
        if alias:
            client.set_registered_model_alias(name, alias, version.number)
        fault.at("publish.named")
    return version


def _content(checkpoint: Path, name: str, licence: str | None, folder: Path) -> dict[Path, str]:
    """The files of a model with their sums, the list of these last; weights stay where they are."""
    taken = {name: expected for name, expected in read_sums(checkpoint).items() if TAKEN.fullmatch(name)}
    (folder / "README.md").write_text(without_secrets(card(checkpoint, name, licence)))
    if (checkpoint / "recipe.yaml").exists():  # without passwords, so it may differ from the checkpoint's
        (folder / "recipe.yaml").write_text(without_secrets((checkpoint / "recipe.yaml").read_text()))
    write_flavour(folder, read_model_info(checkpoint).model.image_size)
    written = sorted(folder.iterdir())
    write_sums(folder, taken)
    sums, paths = read_sums(folder), [*(checkpoint / name for name in taken), *written]
    return {**{path: sums[path.name] for path in paths}, folder / SUMS: sha256(folder / SUMS)}


def _logged_model(client: Any, name: str, uri: str, run_id: str | None, digest: str) -> str:
    """The logged model of this run with this content, complete or not; a new one where there is none."""
    home = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, TrackingConfig().experiment, uri)
    for model in client.search_logged_models([home], filter_string=f"tags.`{DIGEST}` = '{digest}'"):
        if (model.source_run_id or None) == run_id:
            return model.model_id
    allowed = re.sub("[.%]", "-", name)  # MLflow takes less here than for registered models
    return client.create_logged_model(home, allowed, source_run_id=run_id, tags={DIGEST: digest}).model_id


def _send(files: Artifacts, content: dict[Path, str]) -> None:
    """Store what is not there yet, sound; each file is fetched again to be sure."""
    there = files.sizes()
    for path, expected in content.items():
        if there.get(path.name) == path.stat().st_size and files.sha256(path.name) == expected:
            continue
        files.send(path)
        fault.at("publish.sent")
        if files.sha256(path.name) != expected:
            raise ModelError(f"{path}: damaged here or on the way: what MLflow has stored differs from its SHA-256; try again")


def _register(client: Any, checkpoint: Path, model: Version) -> Version:
    """The version that a complete logged model is; a new one where there is none."""
    client.finalize_logged_model(model.model_id, "READY")
    if not client.search_registered_models(f"name='{model.name}'"):
        client.create_registered_model(model.name)
    for entry in versions_of(client, model.name):
        if entry.source == model.uri:
            return version_of(client, entry)
    state = read_state(checkpoint)
    tags: dict[str, str | None] = {score_tag(metric): str(value) for metric, value in measured(checkpoint).items()}
    tags |= {DIGEST: model.digest, "vitscale.step": str(state.get("step", ""))}
    return version_of(client, client.create_model_version(model.name, model.uri, model.run_id, tags, model_id=model.model_id))


def publish_due(run: RunDir, cfg: RunConfig, uri: str, run_id: str, finished: bool) -> dict[str, dict[str, str]]:
    """Publish what a run has to: its best checkpoint so far, and when it is `finished` its last.

    What was done is noted in `published.json` (role -> version and what led to it), so that calls with nothing new to do cost
    a look at the checkpoints. ModelError and TrackingError leave all as it was; call again.
    """
    note = run.path / PUBLISHED
    done: dict[str, dict[str, str]] = json.loads(note.read_text()) if note.exists() else {}
    if cfg.publish is None:
        return done
    for role, checkpoint in _due(run, cfg, finished).items():
        alias = cfg.publish.alias if role == "last" else ""
        wanted = {"checkpoint": checkpoint.name, "name": cfg.publish.name, "alias": alias, "run_id": run_id}
        if wanted.items() <= done.get(role, {}).items():
            continue
        try:
            version = publish(checkpoint, cfg.publish.name, alias or None, uri, run_id, cfg.publish.licence)
        except UserError:
            if checkpoint.exists():
                raise
            continue  # a better one has taken its place meanwhile
        _keep_house(cfg.publish, uri, version)
        done[role] = {**wanted, "version": version.uri}
        replace_text(note, json.dumps(done, indent=1) + "\n")
    return done


def _due(run: RunDir, cfg: RunConfig, finished: bool) -> dict[str, Path]:
    found, metric = complete(run.checkpoints), cfg.checkpoint.best
    leader = best(found, scores_of(found[-1]), metric) if metric and found else None
    last = found[-1] if found and finished else None
    return {role: path for role, path in (("best", leader), ("last", last)) if path}


def _keep_house(config: PublishConfig, uri: str, version: Version) -> None:
    """After a new version: who is champion, what goes, and what uploads of this run that were overtaken left behind."""
    client = connect(uri)
    with mlflow_errors(uri):
        if config.champion and crown(client, version, config.champion):
            say(f"{version.uri} is the champion of {version.name} by {config.champion}")
    try:
        if config.keep:
            retain(client, version.name, config.keep)
        experiment = client.get_run(version.run_id).info.experiment_id
        for model in client.search_logged_models([experiment], f"source_run_id = '{version.run_id}'"):
            if DIGEST in model.tags and str(model.status) == "PENDING":
                discard(client, model.model_id)
    except Exception as error:  # who may publish need not be allowed to delete
        say(f"warning: MLflow at {without_secrets(uri)}: {reason(error)}; old versions of {version.name} stay")
