"""The one door to MLflow: a model version, its run and its files, read from a tracking server or Azure ML (ADR 36).

What a registry says is another party's word: every field is checked, every file is bounded, and nothing is unpickled or
run. Used by one thread. Credentials come from the environment variables that MLflow and its plugins know.
"""

import os
import resource
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from edge_contract.errors import ContractError, EdgeError
from edge_contract.names import relative_path
from packager.azureml import Artifact, Selector, Source
from packager.limits import (
    MLFLOW_DOCUMENT_BYTES_MAX,
    MLFLOW_FILES_MAX,
    MLFLOW_OVERRUN_BYTES_MAX,
    MLFLOW_RETRIES_MAX,
    MLFLOW_TIMEOUT_S,
    MLFLOW_VERSIONS_MAX,
)

_SCHEMES: Final = ("http", "https", "azureml")
# A registry names the place of its files. A place on this machine would publish the author's own files.
_STORES: Final = ("mlflow-artifacts", "azureml", "s3", "gs", "wasbs", "abfss")
_AZURE_ML: Final = (".api.azureml.ms", ".api.ml.azure.cn", ".api.ml.azure.us", ".ml.azure.com")
_AZURE_STORAGE: Final = (".core.windows.net", ".core.chinacloudapi.cn", ".core.usgovcloudapi.net")
_LATEST: Final = "latest"
_CREDENTIALS_HINT: Final = (
    "Set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; for Azure ML, log in with "
    "az login or set AZURE_CLIENT_ID, AZURE_TENANT_ID and AZURE_CLIENT_SECRET."
)


class MlflowReader:
    """Reads one registry."""

    def __init__(self, tracking_uri: str, registry_uri: str = "") -> None:
        """Take the client into use; nothing is sent yet.

        Args:
            tracking_uri: `http(s)://…` of an MLflow server, or `azureml://…` of a workspace.
            registry_uri: Where models are registered, when elsewhere.

        Raises:
            EdgeError: `config.invalid` for an address that cannot be used; `config.dependency-missing`.
        """
        for uri in filter(None, (tracking_uri, registry_uri)):
            _check_uri(uri)
        _quieten()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                import mlflow.exceptions
                import mlflow.store.artifact.artifact_repository_registry as repositories
                import mlflow.tracking
                import yaml
        except ImportError as error:
            raise EdgeError(
                "config.dependency-missing",
                f"the MLflow client cannot be used: {error}",
                'pip install "lighterman[mlflow]"',
            ) from None
        self._yaml: Any = yaml
        self._failure: Any = mlflow.exceptions.MlflowException
        self._repository_of: Any = repositories.get_artifact_repository
        self._tracking_uri, self._registry_uri = tracking_uri, registry_uri or tracking_uri
        with self._translated("the registry's address"):
            self._client: Any = mlflow.tracking.MlflowClient(tracking_uri, self._registry_uri)

    def source(self, selector: Selector) -> Source:
        """What the registry says of one version, with its run.

        Raises:
            EdgeError: `cloud.not-found`, `cloud.unauthorized`, `cloud.unavailable`, `network.unreachable`.
        """
        what = str(selector)
        with self._translated(what):
            version = self._version(selector)
            model = self._client.get_registered_model(version.name)
            location = self._location(version)
        run = self._run(version.run_id)
        data = {} if run is None else {"params": run.data.params, "metrics": run.data.metrics, "tags": run.data.tags}
        datasets = () if run is None or run.inputs is None else run.inputs.dataset_inputs
        return Source(
            registry=self._registry_uri,
            name=str(version.name),
            version=str(version.version),
            location=location,
            description=str(version.description or model.description or ""),
            run_id=str(version.run_id or ""),
            stage=str(version.current_stage or ""),
            aliases=tuple(sorted(str(item) for item in version.aliases or ())),
            tags=_texts(model.tags) | _texts(version.tags),
            params=_texts(data.get("params")),
            metrics=_texts(data.get("metrics")),
            run_tags=_texts(data.get("tags")),
            dataset=next((f"{item.dataset.name}@{item.dataset.digest}" for item in datasets), ""),
            created_ms=int(version.creation_timestamp or 0),
        )

    def artifacts(self, source: Source) -> tuple[Artifact, ...]:
        """The files of a version, sorted by path.

        Raises:
            EdgeError: `artifact.path-unsafe` for a path that leaves the version's folder; `config.invalid` for too
                many files; as `source`.
        """
        found: dict[str, Artifact] = {}
        repository = self._repository(source)
        prefix = _prefix(repository)
        waiting, visited = [prefix], 0
        while waiting:
            folder, visited = waiting.pop(), visited + 1
            with self._translated(str(source)):
                listed = repository.list_artifacts(folder or None)
            for item in listed:
                if prefix and not str(item.path).startswith(f"{folder}/"):
                    continue
                path = _inside(str(source), folder, item.path)
                if item.is_dir:
                    waiting.append(path)
                else:
                    size = -1 if item.file_size is None else int(item.file_size)
                    inner = path.removeprefix(f"{prefix}/")
                    found[inner] = Artifact(inner, size if size >= 0 else None)
                if len(found) + len(waiting) + visited > MLFLOW_FILES_MAX:
                    raise EdgeError("config.invalid", f"{source} has more than {MLFLOW_FILES_MAX} files")
        return tuple(found[path] for path in sorted(found))

    def document(self, source: Source, artifact: Artifact, folder: Path) -> dict[str, Any]:
        """The `MLmodel` document of a version; read as plain data.

        Raises:
            EdgeError: `artifact.document-invalid`, `artifact.document-too-large`; as `download`.
        """
        if artifact.size is not None and artifact.size > MLFLOW_DOCUMENT_BYTES_MAX:
            raise EdgeError("artifact.document-too-large", f"{source}: MLmodel has {artifact.size} bytes")
        self.download(source, [artifact], folder, MLFLOW_DOCUMENT_BYTES_MAX)
        try:
            text = (folder / artifact.path).read_text(encoding="utf-8")
            if any(isinstance(token, self._yaml.AliasToken) for token in self._yaml.scan(text)):
                raise ValueError("it has aliases, which may stand for far more than it is long")
            value = self._yaml.safe_load(text)
        except (self._yaml.YAMLError, UnicodeError, ValueError, RecursionError) as error:
            raise EdgeError("artifact.document-invalid", f"{source}: MLmodel is not YAML: {error}") from None
        if not isinstance(value, dict):
            raise EdgeError("artifact.document-invalid", f"{source}: MLmodel is not a mapping")
        return value

    def download(self, source: Source, artifacts: Iterable[Artifact], folder: Path, bytes_max: int) -> None:
        """Bring files below a folder, each at its path, each with the size that was announced.

        Raises:
            EdgeError: `artifact.size-mismatch`, `artifact.path-unsafe`, `config.invalid` for more than `bytes_max`,
                `device.disk-full`; as `source`.
        """
        left = bytes_max
        for artifact in artifacts:
            if (artifact.size or 0) > left:
                hint = "Allow more with --max-bytes, or choose files with --file."
                raise EdgeError("config.invalid", f"{source} has more than {bytes_max} bytes to download", hint)
            if shutil.disk_usage(folder).free < (artifact.size or 0):
                raise EdgeError("device.disk-full", f"{folder} has no room for {artifact.path} ({artifact.size} bytes)")
            target = folder / artifact.path
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as room:
                with self._translated(f"{source}: {artifact.path}"), _file_size_limit(left, artifact.size):
                    got = Path(self._repository(source).download_artifacts(artifact.path, room))
                if not got.resolve().is_relative_to(Path(room).resolve()) or got.is_symlink() or not got.is_file():
                    why = f"{source}: {artifact.path} came as something else than a file"
                    raise EdgeError("artifact.path-unsafe", why)
                size = got.stat().st_size
                if size > left or artifact.size not in (None, size):
                    raise EdgeError(
                        "artifact.size-mismatch",
                        f"{source}: {artifact.path} has {size} bytes, {artifact.size or left} were allowed",
                    )
                os.replace(got, target)
            left -= size

    def _version(self, selector: Selector) -> Any:
        name = selector.name
        if selector.alias:
            return self._client.get_model_version_by_alias(name, selector.alias)
        if selector.version:
            return self._client.get_model_version(name, selector.version)
        newest, token, seen = None, None, 0
        while True:
            page = self._client.search_model_versions(f"name='{name}'", page_token=token)
            for item in page:
                is_fit = selector.stage == _LATEST or str(item.current_stage).casefold() == selector.stage.casefold()
                if is_fit and (newest is None or int(item.version) > int(newest.version)):
                    newest = item
            seen, token = seen + len(page), getattr(page, "token", None)
            if not token or seen >= MLFLOW_VERSIONS_MAX:
                break
        if newest is None:
            raise EdgeError("cloud.not-found", f"the registry has no version {selector}", "Name one as NAME/VERSION.")
        # A search answers without aliases.
        return self._client.get_model_version(name, newest.version)

    def _run(self, run_id: str | None) -> Any:
        """The run of a version, or none when it was deleted since."""
        if not run_id:
            return None
        try:
            with self._translated(f"the run {run_id}"):
                return self._client.get_run(run_id)
        except EdgeError as error:
            if error.code != "cloud.not-found":
                raise
            return None

    def _location(self, version: Any) -> str:
        location = str(self._client.get_model_version_download_uri(version.name, version.version))
        if location.startswith("models:/m-"):
            location = str(self._client.get_logged_model(location.removeprefix("models:/")).artifact_location)
        return checked_location(location, self._tracking_uri, self._registry_uri)

    def _repository(self, source: Source) -> Any:
        return self._repository_of(source.location, self._tracking_uri, self._registry_uri)

    @contextmanager
    def _translated(self, what: str) -> Iterator[None]:
        """What MLflow, its transport and its plugins raise, as coded errors."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        except EdgeError:
            raise
        except OSError as error:
            if error.errno in (27, 28, 122):
                raise EdgeError("artifact.size-mismatch", f"{what}: more came than may: {error.strerror}") from None
            raise EdgeError("network.unreachable", f"{what}: {_brief(error)}") from None
        except self._failure as error:
            raise _coded(what, error) from None
        # A plugin has exceptions of its own, of libraries that are not known here.
        except Exception as error:  # noqa: BLE001
            raise EdgeError("cloud.unavailable", f"{what}: {_brief(error)}", _CREDENTIALS_HINT) from None


def checked_location(location: str, *registries: str) -> str:
    """Require that files lie in a store, and that credentials go to no host but the registry's.

    Raises:
        EdgeError: `artifact.path-unsafe`.
    """
    parts = urlsplit(location)
    hosts = {urlsplit(uri).netloc.rpartition("@")[2] for uri in registries}
    is_foreign = parts.scheme == "mlflow-artifacts" and parts.netloc not in {"", *hosts}
    # These get Azure's credentials, whatever host they name.
    is_foreign |= parts.scheme == "azureml" and not _is_below(parts.hostname, {"", *hosts}, _AZURE_ML)
    is_foreign |= parts.scheme in ("abfss", "wasbs") and not _is_below(parts.hostname, set(), _AZURE_STORAGE)
    if parts.scheme not in _STORES or is_foreign or ".." in parts.path.split("/"):
        raise EdgeError(
            "artifact.path-unsafe",
            f"the registry keeps the version's files at {location[:200]!r}, which is not read",
            "Files are read from the registry's own artifact store or a cloud store "
            f"({', '.join(_STORES)}); start the server with --serve-artifacts.",
        )
    return location


def _is_below(host: str | None, known: set[str], suffixes: tuple[str, ...]) -> bool:
    """Whether a host is one of those known, or belongs to a cloud's own."""
    return (host or "") in known or (host or "").endswith(suffixes)


def _check_uri(uri: str) -> None:
    parts = urlsplit(uri)
    if parts.scheme not in _SCHEMES or not parts.netloc:
        raise EdgeError(
            "config.invalid",
            f"a registry at a {parts.scheme or 'plain'} address is not read",
            "Give --tracking-uri http(s)://… of an MLflow server, or azureml://… of a workspace.",
        )
    if "@" in parts.netloc:
        raise EdgeError("config.invalid", "the registry's address holds credentials", _CREDENTIALS_HINT)
    if parts.scheme == "azureml":
        try:
            metadata.distribution("azureml-mlflow")
        except metadata.PackageNotFoundError:
            raise EdgeError(
                "config.dependency-missing",
                "azureml:// addresses need MLflow's plugin for Azure ML",
                "pip install azureml-mlflow",
            ) from None


def _quieten() -> None:
    """No telemetry, no bars, bounded waiting; what the user set is kept where it is not telemetry."""
    os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", str(MLFLOW_RETRIES_MAX))
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(MLFLOW_TIMEOUT_S))


@contextmanager
def _file_size_limit(left: int, size: int | None) -> Iterator[None]:
    """No file of this process grows further than a download may, while it lasts; a server may send without end."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    most = (left if size is None else size) + MLFLOW_OVERRUN_BYTES_MAX
    if hard != resource.RLIM_INFINITY:
        most = min(most, hard)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _inside(what: str, folder: str, path: Any) -> str:
    """A listed path, which has to lie directly in the folder that was listed."""
    try:
        checked = relative_path(path)
    except ContractError as error:
        raise EdgeError("artifact.path-unsafe", f"{what}: {error.detail}") from None
    if checked.rpartition("/")[0] != folder:
        raise EdgeError("artifact.path-unsafe", f"{what}: {checked!r} was listed in {folder or 'the top folder'!r}")
    return checked


def _prefix(repository: Any) -> str:
    """The folder that a store's lists begin with: Azure ML's plugin lists from the top of what holds the version."""
    path = getattr(getattr(repository, "artifacts", None), "path", None)
    return path.strip("/") if isinstance(path, str) else ""


def _texts(value: Any) -> dict[str, str]:
    return {str(key): str(item) for key, item in dict(value or {}).items()}


def _brief(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


def _coded(what: str, error: Any) -> EdgeError:
    text, code = _brief(error), str(getattr(error, "error_code", ""))
    if code in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "INVALID_PARAMETER_VALUE"):
        return EdgeError("cloud.not-found", f"the registry has no {what}: {text}", "Name it as NAME/VERSION.")
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED") or "error code 401" in text or "error code 403" in text:
        return EdgeError("cloud.unauthorized", f"{what}: the registry does not let us in", _CREDENTIALS_HINT)
    if any(mark in text for mark in ("HTTPConnectionPool", "HTTPSConnectionPool", "Connection", "timed out")):
        return EdgeError("network.unreachable", f"{what}: {text}", "Check --tracking-uri.")
    return EdgeError("cloud.unavailable", f"{what}: {text}")
