"""Checkpoints to the MLflow model registry and back, as plain files with their SHA-256 sums; no pickle, no flavour."""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from vitscale import fault
from vitscale.config import TrackingConfig
from vitscale.errors import ModelError, TrackingError, UserError
from vitscale.modelinfo import AVERAGED, weight_files
from vitscale.modelinfo import FILE as MODEL_INFO
from vitscale.sums import SUMS, verify, write_sums
from vitscale.tracking import connect, experiment_id

BESIDE = (MODEL_INFO, "recipe.yaml", "state.json")
DIGEST_TAG = "vitscale.digest"
SCHEMES = ("models:/", "runs:/")


@contextmanager
def _mlflow_errors(uri: str) -> Iterator[None]:
    """MLflow's exceptions come with the scheme (REST, SQL, files): make them one of ours."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise TrackingError(
            f"MLflow at {uri}: {' '.join(str(error).split())}; nothing is changed or lost, try again when that is mended"
        ) from error


class Version(NamedTuple):
    """A version of a registered model."""

    name: str
    number: str
    model_id: str  # of the logged model that holds the files
    run_id: str | None  # of the run that made it
    digest: str | None  # of its SHA256SUMS

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}"


def publish(checkpoint: Path, name: str, alias: str, uri: str, run_id: str | None) -> Version:
    """Register a checkpoint's weights as a version of model `name`, then point `alias` at it.

    The alias moves last, after the stored files were fetched again and their sums hold. A version of this run with this
    content is used again, so that a killed call can be repeated.
    """
    with _mlflow_errors(uri):
        return _publish(checkpoint, name, alias, uri, run_id)


def _publish(checkpoint: Path, name: str, alias: str, uri: str, run_id: str | None) -> Version:
    client = connect(uri)
    with tempfile.TemporaryDirectory() as folder:
        content = Path(folder) / "model"
        content.mkdir()
        weights = (*weight_files(checkpoint), *weight_files(checkpoint, AVERAGED))
        for path in (*weights, *(checkpoint / name for name in BESIDE)):
            if path.exists():
                shutil.copyfile(path, content / path.name)
        write_sums(content)
        digest = hashlib.sha256((content / SUMS).read_bytes()).hexdigest()
        version = _find(client, name, run_id, digest)
        if version is None:
            version = _register(client, content, name, uri, run_id, digest)
            fault.at("publish.registered")
            _read_back(version)
    client.set_registered_model_alias(name, alias, version.number)
    fault.at("publish.named")
    return version


def _find(client: Any, name: str, run_id: str | None, digest: str) -> Version | None:
    """A version of this run with this content whose stored files are sound, if there is one."""
    found = client.search_model_versions(f"name='{name}'")
    versions = (_version(entry) for entry in found if entry.tags.get(DIGEST_TAG) == digest)
    for version in versions:
        with suppress(ModelError):
            if version.run_id == run_id:
                _read_back(version)
                return version
    return None


def _read_back(version: Version) -> None:
    """Fetch the stored files again; ModelError where they are damaged."""
    with tempfile.TemporaryDirectory() as folder:
        _download(version, Path(folder))


def _register(client: Any, content: Path, name: str, uri: str, run_id: str | None, digest: str) -> Version:
    default = TrackingConfig().experiment
    experiment = client.get_run(run_id).info.experiment_id if run_id else experiment_id(client, default, uri)
    model = client.create_logged_model(experiment, name, source_run_id=run_id, tags={DIGEST_TAG: digest})
    client.log_model_artifacts(model.model_id, str(content))
    fault.at("publish.uploaded")
    client.finalize_logged_model(model.model_id, "READY")
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    source = f"models:/{model.model_id}"
    return _version(client.create_model_version(name, source, run_id, {DIGEST_TAG: digest}, model_id=model.model_id))


def resolve(source: str, uri: str) -> Version:
    """The version that `models:/NAME@ALIAS`, `models:/NAME/VERSION` or `runs:/RUN_ID` (its newest) means."""
    client = connect(uri, create=False)
    try:
        return _version(_lookup(client, source))
    except Exception as error:  # MLflow's exceptions come with the scheme: REST, SQL, files
        with _mlflow_errors(uri):  # a server that does not answer is not a model that is not there
            known = _known_models(client)
        raise TrackingError(
            f"{source}: not found in the MLflow registry at {uri} ({' '.join(str(error).split())}); {known}; set "
            "MLFLOW_TRACKING_URI if the model lies elsewhere"
        ) from error


def _lookup(client: Any, source: str) -> Any:
    scheme, _, rest = source.partition(":/")
    if scheme == "runs":
        versions = client.search_model_versions(f"run_id='{rest}'")
        if not versions:
            raise TrackingError("this run has published no model")
        return max(versions, key=lambda version: int(version.version))
    name, at, alias = rest.partition("@")
    if at:
        return client.get_model_version_by_alias(name, alias)
    name, slash, number = rest.rpartition("/")
    if not slash:
        raise TrackingError("a model URI ends in @ALIAS or /VERSION")
    return client.get_model_version(name, number)


def _known_models(client: Any) -> str:
    names = [f"{m.name}@{alias}" for m in client.search_registered_models() for alias in m.aliases]
    return f"it has {', '.join(names) or 'none'}"


def pull(source: str, uri: str, to: Path) -> Version:
    """Download a model into the directory `to`, verified; `to` is complete or untouched."""
    version = resolve(source, uri)
    if to.exists() and not verify(to):
        digest = hashlib.sha256((to / SUMS).read_bytes()).hexdigest()
        if digest == version.digest:
            return version
    if to.exists() and any(to.iterdir()):
        raise ModelError(f"{to}: exists and is not {source}; choose another directory or remove it")
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{to.name}.", dir=to.parent) as folder:
        content = Path(folder) / "model"
        with _mlflow_errors(uri):
            _download(version, content)
        if to.exists():
            to.rmdir()
        content.rename(to)
    return version


def _download(version: Version, to: Path) -> None:
    """Fetch a version's files and check them against their sums and the registered digest."""
    import mlflow

    to.mkdir(exist_ok=True)
    fetched = Path(mlflow.artifacts.download_artifacts(f"models:/{version.model_id}", dst_path=str(to)))
    assert fetched.resolve() == to.resolve()
    damaged = verify(to)
    if not damaged and version.digest:
        found = hashlib.sha256((to / SUMS).read_bytes()).hexdigest()
        damaged = [] if found == version.digest else [f"{SUMS} is not the registered one"]
    if damaged:
        raise ModelError(f"{version.uri}: {', '.join(damaged)}; the stored copy is damaged, publish it again")


def _version(entry: Any) -> Version:
    model_id = entry.source.removeprefix("models:/") if entry.source else ""
    return Version(entry.name, str(entry.version), entry.model_id or model_id, entry.run_id or None, entry.tags.get(DIGEST_TAG))
