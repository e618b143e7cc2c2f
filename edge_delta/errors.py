"""The one error that a bad delta ends with."""

from edge_contract.errors import EdgeError


class DeltaError(EdgeError):
    """A delta that is damaged, does not fit its base, or asks for more than its bounds allow."""

    def __init__(self, detail: str) -> None:
        """Say what is wrong.

        Args:
            detail: What was found where.
        """
        super().__init__(
            "artifact.delta-invalid", detail, "Make the delta again, or fetch the whole file; a device does so itself."
        )
