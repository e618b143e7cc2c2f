"""Registers model files as the next version of a model."""

from cloud_registry.client import RegistryClient
from edge_contract.errors import EdgeError
from edge_contract.jsonio import JsonObject
from edge_contract.limits import MANIFEST_LAYERS_MAX
from packager.build import with_extra_files
from packager.files import digest_of
from packager.layout import code_files
from packager.progress import Reporter, upload_progress
from packager.signature import FORMAT_BY_ENGINE, ModelFacts, merged_signature, read_facts
from packager.spec import SourceFile, Spec


def register(client: RegistryClient, spec: Spec, reporter: Reporter) -> JsonObject:
    """Upload the files of a description and register them; the model is created if it does not exist.

    Args:
        client: With a publisher's token.
        spec: Its version is not used: the registry numbers versions.
        reporter: Shows progress.

    Returns:
        The version as the registry describes it.

    Raises:
        EdgeError: `artifact.not-a-model`, `config.*`, `cloud.*`, `network.*`.
    """
    facts = [read_facts(member.entry.source, member.engine) for member in spec.members]
    files = _files(spec, facts)
    _create_model(client, spec)
    repository = f"models/{spec.name}"
    listed = []
    for file in files:
        size = file.source.stat().st_size
        with reporter.task(f"hashing {file.path}", size) as advance:
            digest, size = digest_of(file.source, advance)
        with reporter.task(f"uploading {file.path}", size) as advance:
            client.upload_blob(repository, file.source, digest, upload_progress(advance))
        listed.append({"path": file.path, "digest": str(digest), "size": size})
    return client.register_version(spec.name, _version(spec, facts, listed))


def _files(spec: Spec, facts: list[ModelFacts]) -> list[SourceFile]:
    files = []
    for member, fact in zip(spec.members, facts, strict=True):
        whole = with_extra_files(member, fact)
        files += [whole.entry, *whole.files]
    for folder in spec.code:
        files += [SourceFile(path, f"{folder.path}/{name}") for path, name in code_files(folder.source)]
    if len(files) > MANIFEST_LAYERS_MAX:
        raise EdgeError(
            "config.invalid", f"the model has {len(files)} files, at most {MANIFEST_LAYERS_MAX} are allowed"
        )
    return files


def _create_model(client: RegistryClient, spec: Spec) -> None:
    try:
        client.create_model(spec.name, spec.about.description)
    except EdgeError as error:
        if error.code != "cloud.conflict":
            raise


def _version(spec: Spec, facts: list[ModelFacts], files: list[JsonObject]) -> JsonObject:
    about, first, fact = spec.about, spec.members[0], facts[0]
    engines = {member.engine for member in spec.members}
    version: JsonObject = {
        "format": FORMAT_BY_ENGINE["script" if "script" in engines else first.engine],
        "files": files,
        "entry": first.entry.path,
        "description": about.description,
        "tags": about.tags,
        "properties": fact.notes | about.properties,
        "lineage": about.lineage,
    }
    for name, declared, read in (("inputs", first.inputs, fact.inputs), ("outputs", first.outputs, fact.outputs)):
        tensors = merged_signature(declared, read, f"member {first.name!r}: {name}")
        version[name] = [item.to_json() for item in tensors]
    return version
