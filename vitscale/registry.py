"""The MLflow registry: which version of a model a URI means, which is the champion, which are kept."""

import math
import re
from typing import Any, NamedTuple

from vitscale.artifacts import Artifacts
from vitscale.errors import TrackingError
from vitscale.progress import say
from vitscale.tracking import connect, mlflow_errors, without_secrets

SCHEMES = ("models:/", "runs:/")
FORMS = "models:/NAME@ALIAS, models:/NAME/VERSION, models:/m-ID or runs:/RUN_ID"
DIGEST = "vitscale.digest"  # tag: SHA-256 of the model's SHA256SUMS
CHAMPION = "champion"


class Version(NamedTuple):
    """A version of a registered model, or a logged model by itself."""

    name: str
    number: str  # "" where none is registered
    model_id: str  # of the logged model that holds the files
    run_id: str | None  # of the run that made it
    digest: str | None  # of its SHA256SUMS

    @property
    def uri(self) -> str:
        return f"models:/{self.name}/{self.number}" if self.number else f"models:/{self.model_id}"


def resolve(source: str, uri: str) -> Version:
    """The version that `models:/NAME@ALIAS`, `models:/NAME/VERSION`, `models:/m-ID` or `runs:/RUN_ID` (its newest) means."""
    client = connect(uri, create=False)
    try:
        return _lookup(client, source)
    except Exception as error:  # MLflow's exceptions come with the scheme: REST, SQL, files
        with mlflow_errors(uri):  # a server that does not answer is not a model that is not there
            known = _known_models(client)
        said = without_secrets(f"{source}: not found in the MLflow registry at {uri} ({' '.join(str(error).split())})")
        raise TrackingError(f"{said}; {known}; set MLFLOW_TRACKING_URI if the model lies elsewhere") from error


def _lookup(client: Any, source: str) -> Version:
    scheme, _, rest = source.partition(":/")
    if scheme == "runs":
        versions = client.search_model_versions(f"run_id='{rest}'")
        if not versions:
            raise TrackingError("this run has published no model")
        return version_of(client, max(versions, key=lambda version: (version.creation_timestamp, int(version.version))))
    if re.fullmatch(r"m-[0-9a-f]{32}", rest):
        return _logged(client, rest)
    name, at, alias = rest.partition("@")
    if at:
        return version_of(client, client.get_model_version_by_alias(name, alias))
    name, slash, number = rest.rpartition("/")
    if not slash:
        raise TrackingError("a model URI ends in @ALIAS or /VERSION, or is models:/m-ID")
    return version_of(client, client.get_model_version(name, number))


def _known_models(client: Any) -> str:
    names = [f"{m.name}@{alias}" for m in client.search_registered_models() for alias in m.aliases]
    return f"it has {', '.join(names) or 'none'}"


def version_of(client: Any, entry: Any) -> Version:
    """What MLflow says of a version, in our words; one that was copied from another model leads to that one's files."""
    source = f"models:/{entry.model_id}" if entry.model_id else entry.source or ""
    if not source.startswith("models:/"):
        raise TrackingError(f"version {entry.version} of {entry.name} was not published by vitscale")
    found = _lookup(client, source)
    return Version(entry.name, str(entry.version), found.model_id, entry.run_id or None, entry.tags.get(DIGEST, found.digest))


def _logged(client: Any, model_id: str) -> Version:
    model = client.get_logged_model(model_id)
    if str(model.status) != "READY":
        raise TrackingError("its upload was never completed; publish it again")
    return Version(model.name, "", model_id, model.source_run_id or None, model.tags.get(DIGEST))


def versions_of(client: Any, name: str) -> list[Any]:
    """What vitscale has published under this name, newest first."""
    found = client.search_model_versions(f"name='{name}'", max_results=10_000)
    return sorted((entry for entry in found if DIGEST in entry.tags), key=lambda entry: -int(entry.version))


def score_tag(metric: str) -> str:
    return f"vitscale.{metric}"


def crown(client: Any, version: Version, metric: str) -> bool:
    """Point `@champion` at a version whose metric beats that of the one there; one without the metric is not beaten."""

    def score(number: str) -> float:
        value = float(client.get_model_version(version.name, number).tags.get(score_tag(metric), math.nan))
        return -value if metric.endswith("loss") else value

    holder = client.get_registered_model(version.name).aliases.get(CHAMPION)
    wins = score(version.number) > score(str(holder)) if holder else not math.isnan(score(version.number))
    if wins:
        client.set_registered_model_alias(version.name, CHAMPION, version.number)
    return wins


def retain(client: Any, name: str, keep: int) -> None:
    """Delete all but the newest `keep` versions that vitscale made, with their files; none that has an alias or a copy."""
    named = {str(number) for number in client.get_registered_model(name).aliases.values()}
    for entry in versions_of(client, name)[keep:]:
        own, number = f"models:/{name}/{entry.version}", str(entry.version)
        same = [other for source in (entry.source, own) for other in client.search_model_versions(f"source_path='{source}'")]
        if number not in named and len(same) == 1:  # itself
            model_id = version_of(client, entry).model_id
            client.delete_model_version(name, number)
            discard(client, model_id)


def discard(client: Any, model_id: str) -> None:
    """Delete a logged model and its files; where the store refuses the latter, `mlflow gc` deletes them."""
    files = Artifacts(client, model_id)
    client.delete_logged_model(model_id)
    try:
        files.delete()
    except Exception as error:
        say(f"warning: the files of {model_id} are still stored ({error}); `mlflow gc` on the server deletes them")
