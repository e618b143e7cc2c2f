"""Stable error codes. Each code belongs to a category that says who acts, and has a disposition that says what the
device does.

A code once shipped keeps its meaning for ever; a new meaning gets a new code. The text after a code is a summary for
documentation and for problem documents, not a message: messages are built where the error happens and name the input.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Category(StrEnum):
    """Who has to act."""

    TRUST = "trust"
    ARTIFACT = "artifact"
    MODEL = "model"
    DEVICE = "device"
    NETWORK = "network"
    CLOUD = "cloud"
    CONFIG = "config"
    INTERNAL = "internal"


class Disposition(StrEnum):
    """What the device does with a deployment that met the error."""

    REFUSE = "refuse"  # keep the live model, this deployment is over
    QUARANTINE = "quarantine"  # refuse, and never try this digest again
    ROLL_BACK = "roll_back"
    HOLD = "hold"  # wait for a person or a change of circumstances
    RETRY = "retry"  # try again with capped, jittered backoff
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class Code:
    """One stable error code.

    Attributes:
        code: `category.name`, lower case, stable for ever.
        category: Who acts.
        disposition: What the device does.
        summary: What the code means, for documentation and problem documents.
    """

    code: str
    category: Category
    disposition: Disposition
    summary: str


_ROWS: Final = (
    # trust: publisher, security
    ("trust.signature-invalid", "refuse", "Metadata carries no valid signature of enough trusted keys."),
    ("trust.metadata-expired", "refuse", "Metadata is past its expiry (freeze attack, or nobody refreshed it)."),
    ("trust.metadata-rollback", "refuse", "Metadata is older than what this device trusted before (rollback attack)."),
    ("trust.metadata-mismatch", "refuse", "Metadata files do not belong together (mix-and-match attack)."),
    ("trust.metadata-invalid", "refuse", "Metadata cannot be read as what it claims to be."),
    ("trust.metadata-too-large", "refuse", "Metadata is longer than its limit (endless data attack)."),
    ("trust.repositories-disagree", "refuse", "Director and image repository differ about an artifact."),
    ("trust.target-unknown", "refuse", "The image repository does not know the artifact that was assigned."),
    ("trust.wrong-device", "refuse", "The director metadata is for another device."),
    ("trust.release-rollback", "refuse", "The release counter falls and no permit allows it."),
    ("trust.report-unsigned", "refuse", "A report carries no valid signature of the device's enrolled key."),
    ("trust.report-replayed", "refuse", "A report is not newer than one that was taken before (replay)."),
    ("trust.root-unknown", "hold", "The device has no root of trust; enrol it again."),
    # artifact: publisher
    ("artifact.digest-mismatch", "quarantine", "The bytes do not have the digest they were named by."),
    ("artifact.size-mismatch", "quarantine", "More or fewer bytes came than were declared."),
    ("artifact.digest-invalid", "refuse", "A digest is not of the form sha256:<64 lower-case hexadecimal digits>."),
    ("artifact.document-invalid", "quarantine", "A document is not the JSON it has to be."),
    ("artifact.document-too-large", "quarantine", "A document is longer than its limit."),
    ("artifact.duplicate-key", "quarantine", "A JSON object names the same key twice."),
    ("artifact.unknown-field", "quarantine", "A document has a field its schema does not know."),
    ("artifact.manifest-invalid", "quarantine", "A manifest breaks the rules of a Lighterman bundle."),
    ("artifact.path-unsafe", "quarantine", "A path leaves its folder, is absolute, or is not plain."),
    ("artifact.entry-forbidden", "quarantine", "An archive holds a link, a device or another special entry."),
    ("artifact.archive-bomb", "quarantine", "An archive unpacks to far more than it may."),
    ("artifact.archive-invalid", "quarantine", "An archive cannot be read."),
    ("artifact.layer-unsupported", "quarantine", "A layer has a media type this version cannot unpack."),
    ("artifact.runtime-invalid", "quarantine", "The runtime descriptor of a bundle is not valid."),
    ("artifact.platform-mismatch", "refuse", "The bundle is for another platform."),
    ("artifact.golden-invalid", "quarantine", "The golden vectors cannot be read or do not fit the tensor signature."),
    ("artifact.not-a-model", "refuse", "The file is not a model of the format it was given as."),
    ("artifact.quarantined", "refuse", "This digest failed on this device before and is not tried again."),
    ("artifact.delta-invalid", "refuse", "A delta cannot be decoded; the full blob is fetched instead."),
    ("artifact.not-found", "retry", "The registry does not have an artifact that was assigned."),
    # model: data scientist
    ("model.load-failed", "quarantine", "The engine could not load the model."),
    ("model.golden-mismatch", "quarantine", "The model's outputs differ from the golden vectors."),
    (
        "model.outputs-changed",
        "hold",
        "The bundle that was confirmed computes other outputs on its golden vectors, within their tolerance.",
    ),
    ("model.output-invalid", "quarantine", "The model gave outputs that are not finite or do not fit its signature."),
    ("model.evaluation-failed", "refuse", "The author's evaluation of a model could not be run."),
    ("model.gate-failed", "refuse", "A model is worse than its author's gate allows."),
    ("model.worker-crashed", "roll_back", "The worker process ended by itself."),
    ("model.unhealthy", "roll_back", "The model failed its probation."),
    ("model.trial-failed", "quarantine", "The candidate agreed too little with the live model in its trial."),
    ("model.trial-inconclusive", "hold", "Too few predictions were asked for while the candidate was on trial."),
    ("model.pickle-refused", "refuse", "The bundle wants to load pickles, and the signed policy does not permit it."),
    ("model.timeout", "quarantine", "The model did not load or prove itself in time."),
    ("model.inference-failed", "roll_back", "The model raised an error on an input."),
    ("model.engine-unavailable", "refuse", "This device does not have the engine that the bundle needs."),
    ("model.input-invalid", "refuse", "An inference request does not fit the model's tensor signature."),
    ("model.not-serving", "retry", "No model of that name is being served here."),
    ("model.load-refused", "refuse", "Models are loaded and unloaded by signed assignment, never by a request."),
    ("model.not-offered", "refuse", "The request asks for something that this server does not do."),
    ("model.overloaded", "retry", "The queue of inference requests is full."),
    # device: device owner
    ("device.disk-full", "hold", "There is not enough space for the bundle and the emergency reserve."),
    ("device.disk-error", "retry", "The disk refused an operation."),
    ("device.disk-corrupt", "retry", "Bytes on this device's disk no longer have their digest."),
    ("device.clock-untrusted", "hold", "The clock is earlier than a time this device knows to have passed."),
    ("device.step-overdue", "retry", "A step of an update took longer than it may, and was given up."),
    ("device.restarted", "retry", "The agent was restarted in the middle of a step as often as is tolerated."),
    ("device.held", "hold", "An operator holds updates back on this device."),
    ("device.outside-window", "hold", "The signed policy allows activation in a maintenance window only."),
    ("device.postponed", "hold", "The device's own hook asked to wait."),
    ("device.hook-failed", "hold", "The device's own hook could not be run, or ended badly."),
    ("device.answers-otherwise", "roll_back", "Another bundle than the live one answers the module's socket."),
    ("device.key-unusable", "hold", "The device's private key cannot be used."),
    ("device.memory-short", "hold", "There is not enough memory to load the candidate."),
    ("device.not-enrolled", "hold", "This device has no identity yet."),
    ("device.no-fallback", "hold", "There is nothing to roll back to."),
    ("device.rollback-failed", "hold", "The fallback could not be made live."),
    ("device.too-many-modules", "hold", "More modules are assigned than a device holds."),
    ("device.between-bundles", "retry", "The module is changing what answers; ask again in a moment."),
    ("device.busy", "retry", "Another agent process owns this data directory."),
    # network: nobody, then owner
    ("network.unreachable", "retry", "The other side could not be reached."),
    ("network.timeout", "retry", "The other side did not answer in time."),
    ("network.too-slow", "retry", "The other side sends less than the least rate (slow retrieval attack)."),
    ("network.cut", "retry", "The connection ended before the last byte."),
    ("network.refused", "hold", "The other side does not accept this device's credentials."),
    # cloud: operator
    ("cloud.unavailable", "retry", "The registry answered with an error of its own."),
    ("cloud.bad-request", "hold", "The registry did not accept the request."),
    ("cloud.unauthorized", "hold", "No valid token came with the request."),
    ("cloud.forbidden", "hold", "The token's role does not allow this."),
    ("cloud.not-found", "hold", "There is no such thing in the registry."),
    ("cloud.conflict", "hold", "The thing exists already, or changed meanwhile."),
    ("cloud.in-use", "hold", "The thing is still needed and cannot be deleted."),
    ("cloud.name-invalid", "hold", "A name has characters that are not allowed."),
    ("cloud.condition-invalid", "hold", "A target condition cannot be read."),
    ("cloud.query-invalid", "hold", "A query cannot be run."),
    ("cloud.upload-invalid", "hold", "An upload does not fit what was announced."),
    ("cloud.token-expired", "retry", "A token that a device signed is outside its time; the answer's Date tells ours."),
    ("cloud.device-revoked", "hold", "The device's identity was revoked."),
    ("cloud.token-spent", "hold", "An enrolment token was used before, or is past its expiry."),
    ("cloud.too-large", "hold", "A request is larger than its limit."),
    ("cloud.not-acceptable", "hold", "A range, media type or precondition cannot be met."),
    # config: operator
    ("config.invalid", "hold", "A configuration value is missing or wrong."),
    ("config.file-missing", "hold", "A file that was named does not exist or cannot be read."),
    ("config.key-invalid", "hold", "A key file cannot be read, or its pass phrase is wrong."),
    ("config.dependency-missing", "hold", "A library or program that this command needs is not installed."),
    # internal: us
    ("internal.bug", "restart", "An invariant of the program does not hold."),
    ("internal.record-invalid", "restart", "The persisted record cannot be read."),
)

CODES: Final[dict[str, Code]] = {
    code: Code(code, Category(code.split(".", 1)[0]), Disposition(disposition), summary)
    for code, disposition, summary in _ROWS
}

EXIT_BY_CATEGORY: Final[dict[Category, int]] = {
    Category.CONFIG: 2,
    Category.TRUST: 3,
    Category.ARTIFACT: 4,
    Category.MODEL: 5,
    Category.DEVICE: 6,
    Category.NETWORK: 7,
    Category.CLOUD: 8,
    Category.INTERNAL: 70,
}
"""Exit code of every command-line tool, by category of the error; 0 is success, 1 an outcome that is not an error."""
