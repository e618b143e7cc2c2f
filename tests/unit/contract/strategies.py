"""Values of the contract for property tests: every one is valid and within its bounds."""

from dataclasses import replace

from hypothesis import strategies as st

from edge_contract.deployment import DAY_MINUTES, ActivationMode, Artifact, Assignment, Policy, Window
from edge_contract.digest import Digest
from edge_contract.engines import ENTRIES
from edge_contract.limits import BLOB_BYTES_MAX, MANIFEST_BYTES_MAX, PROBATION_MS_MAX
from edge_contract.manifest import (
    CODE_RAW,
    CODE_TAR,
    CONFIG_TYPE,
    DATASET_RAW,
    DOC_RAW,
    FILEPATH,
    MANIFEST_TYPE,
    ROLE,
    WEIGHT_CONFIG_RAW,
    WEIGHT_RAW,
    Descriptor,
    Index,
    Manifest,
    Role,
)
from edge_contract.names import PLATFORMS
from edge_contract.phases import Outcome, Phase
from edge_contract.pipeline import Step
from edge_contract.runtime import RUNTIME_PATH, Golden, Member, Probation, Runtime
from edge_contract.signed import Envelope
from edge_contract.telemetry import KINDS, Ack, Batch, Sample
from edge_contract.tensors import ITEM_BYTES, TensorSpec
from edge_contract.twin import Report, ReportedDeployment, ReportedError, ReportedModule

NUMBER_MAX = 2**53 - 1

names = st.from_regex(r"[a-z0-9]{1,8}(?:[._-][a-z0-9]{1,8}){0,2}", fullmatch=True)
devices = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
digests = st.binary(max_size=8).map(Digest.of)
counts = st.integers(0, NUMBER_MAX)
counts_of_blob = st.integers(0, BLOB_BYTES_MAX)
ratios = st.floats(0.0, 1.0, allow_nan=False)
texts = st.text(max_size=40)
platforms = st.sampled_from(PLATFORMS)
annotations = st.dictionaries(st.text(min_size=1, max_size=20), texts, max_size=4)
segments = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,12}", fullmatch=True)
paths = st.lists(segments, min_size=1, max_size=4).map("/".join)
json_values: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers(-NUMBER_MAX, NUMBER_MAX) | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip
json_objects = st.dictionaries(texts, json_values, max_size=4)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    """A bundle: one runtime descriptor, at most one golden file, other layers at paths that do not clash."""
    sizes: dict[Digest, int] = {}

    def blob(media_type: str, notes: dict[str, str]) -> Descriptor:
        digest = draw(digests)
        size = sizes.setdefault(digest, draw(st.integers(0, BLOB_BYTES_MAX)))
        return Descriptor(media_type, digest, size, notes)

    layers = [blob(WEIGHT_CONFIG_RAW, {ROLE: Role.RUNTIME, FILEPATH: RUNTIME_PATH})]
    others = draw(st.lists(segments, max_size=4, unique_by=str.casefold))
    for number, name in enumerate(others):
        role, media_type = draw(
            st.sampled_from(
                [(Role.MODEL, WEIGHT_RAW), (Role.CODE, CODE_RAW), (Role.CODE, CODE_TAR), (Role.DOC, DOC_RAW)]
                + ([(Role.GOLDEN, DATASET_RAW)] if number == 0 else [])
            )
        )
        layers.append(
            blob(media_type, {ROLE: role, FILEPATH: f"files/{name}"} | draw(st.just({}) | st.just({"a": "b"})))
        )
    subject = draw(st.none() | st.builds(Descriptor, st.just(MANIFEST_TYPE), digests, counts_of_blob))
    return Manifest(blob(CONFIG_TYPE, {}), tuple(draw(st.permutations(layers))), draw(annotations), subject)


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    """One manifest for each of some platforms."""
    chosen = draw(st.lists(platforms, min_size=1, max_size=len(PLATFORMS), unique=True))
    return Index(
        tuple(
            Descriptor(MANIFEST_TYPE, draw(digests), draw(counts_of_blob), draw(annotations), platform)
            for platform in chosen
        ),
        draw(annotations),
    )


tensors = st.builds(
    TensorSpec,
    st.text(min_size=1, max_size=20),
    st.sampled_from(sorted(ITEM_BYTES)),
    st.lists(st.integers(-1, 2**31 - 1), max_size=4).map(tuple),
)
_signatures = st.lists(tensors, max_size=3, unique_by=lambda spec: spec.name).map(tuple)
members = st.builds(
    Member,
    names,
    st.sampled_from(ENTRIES),
    paths,
    _signatures,
    _signatures,
    st.dictionaries(texts, texts, max_size=3),
)


@st.composite
def _bundles_of_members(draw: st.DrawFn) -> tuple[Member, ...]:
    """Models, and perhaps a pipeline that runs some of them one after another."""
    models = draw(st.lists(members, min_size=1, max_size=3, unique_by=lambda member: member.name))
    # Signatures are left out: what runs them says them, and a pipeline is checked again there.
    chained = [replace(model, inputs=(), outputs=()) for model in models]
    taken = {model.name for model in models}
    name = draw(names.filter(lambda text: text not in taken))
    if not draw(st.booleans()):
        return tuple(models)
    tensor = draw(tensors)
    first, last = replace(tensor, name="t0"), replace(tensor, name=f"t{len(chained)}")
    steps = tuple(
        Step(model.name, {draw(texts): f"t{place}"}, {draw(texts): f"t{place + 1}"})
        for place, model in enumerate(chained)
    )
    return (*chained, Member(name, "pipeline", inputs=(first,), outputs=(last,), steps=steps))


_tolerances = st.floats(0.0, 1e6, allow_nan=False)
runtimes = st.builds(
    Runtime,
    model=names,
    version=st.integers(1, NUMBER_MAX),
    members=_bundles_of_members(),
    golden=st.none() | st.builds(Golden, paths, _tolerances, _tolerances),
    probation=st.builds(Probation, st.integers(0, PROBATION_MS_MAX), ratios),
    load_peak_bytes=counts,
    sampling_ratio=ratios,
    allow_pickle=st.booleans(),
    config=st.dictionaries(texts, texts, max_size=3),
)

# Signed ratios are whole parts per million.
policies = st.builds(
    Policy,
    st.none() | st.integers(0, 1_000_000).map(lambda ppm: ppm / 1_000_000),
    st.none() | st.integers(0, PROBATION_MS_MAX),
    st.booleans(),
    st.lists(
        st.builds(
            Window,
            st.integers(0, DAY_MINUTES - 1),
            st.integers(1, DAY_MINUTES),
            st.sets(st.integers(1, 7)).map(lambda days: tuple(sorted(days))),
        ),
        max_size=3,
    ).map(tuple),
    st.sampled_from(ActivationMode),
)
artifacts = st.builds(
    Artifact,
    names,
    st.integers(1, NUMBER_MAX),
    platforms,
    counts,
    names.map(lambda name: f"bundles/{name}"),
    st.lists(texts, max_size=3).map(tuple),
)
assignments = st.builds(Assignment, names, texts, digests, st.integers(1, MANIFEST_BYTES_MAX), artifacts, policies)

errors = st.builds(ReportedError, texts, st.text(max_size=500), st.sampled_from(Phase), counts)
deployments = st.builds(ReportedDeployment, texts, digests, st.none() | st.sampled_from(Outcome), st.none() | errors)
modules = st.builds(
    ReportedModule,
    st.sampled_from(Phase),
    st.none() | digests,
    texts,
    counts,
    st.none() | digests,
    st.none() | digests,
    st.booleans(),
    st.none() | deployments,
    st.none() | digests,
    st.booleans(),
    counts,
    st.none() | deployments,
    st.none() | errors,
)
reports = st.builds(
    Report,
    device=devices,
    boot=st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    number=counts,
    sent_ms=counts,
    platform=platforms,
    agent_version=texts,
    director_version=counts,
    modules=st.dictionaries(names, modules, max_size=3),
    error=st.none() | errors,
    bytes_fetched=counts,
    clock_trusted=st.booleans(),
)
envelopes = st.builds(Envelope, texts, st.binary(max_size=200), texts, st.binary(max_size=80))

samples = st.builds(
    Sample,
    seq=st.integers(1, NUMBER_MAX),
    kind=st.sampled_from(KINDS),
    module=st.just("") | names,
    model=texts,
    version=counts,
    manifest=st.none() | digests,
    taken_ms=counts,
    body=json_objects,
)
batches = st.builds(
    Batch,
    devices,
    st.from_regex(r"[0-9a-f]{16}", fullmatch=True),
    st.lists(samples, min_size=1, max_size=4, unique_by=lambda sample: sample.seq).map(
        lambda found: tuple(sorted(found, key=lambda sample: sample.seq))
    ),
    counts,
)
acks = st.builds(Ack, st.dictionaries(st.from_regex(r"[0-9a-f]{16}", fullmatch=True), counts, max_size=8))
