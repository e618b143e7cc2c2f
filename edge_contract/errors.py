"""The root of every exception that Lighterman raises on purpose."""

from edge_contract.codes import CODES, EXIT_BY_CATEGORY, Category, Disposition
from edge_contract.limits import DETAIL_CHARS_MAX


def _plain(text: str) -> str:
    """Within its bound, and free of lone surrogates, which file names bring and no message can carry."""
    return text[:DETAIL_CHARS_MAX].encode("utf-8", "replace").decode("utf-8")


class EdgeError(Exception):
    """An operating error: data with a stable code, not a bug.

    Attributes:
        code: A key of `edge_contract.codes.CODES`.
        detail: What happened and to which input; free of secrets.
        hint: What to do about it; may be empty.
    """

    def __init__(self, code: str, detail: str, hint: str = "") -> None:
        """Make an error.

        Args:
            code: A key of `CODES`.
            detail: What happened, naming the input; cut at `DETAIL_CHARS_MAX` characters.
            hint: What the reader can do.

        Raises:
            KeyError: If the code is not registered (a bug of the caller).
        """
        self._code = CODES[code]
        self.code = code
        self.detail = _plain(detail)
        self.hint = _plain(hint)
        super().__init__(code, self.detail, self.hint)

    @property
    def category(self) -> Category:
        """Who has to act."""
        return self._code.category

    @property
    def disposition(self) -> Disposition:
        """What the device does with a deployment that met this error."""
        return self._code.disposition

    @property
    def exit_code(self) -> int:
        """The exit code of a command that ends with this error."""
        return EXIT_BY_CATEGORY[self.category]

    def to_json(self) -> dict[str, str]:
        """The error as a JSON object with the keys `code`, `category`, `detail` and `hint`."""
        return {"code": self.code, "category": str(self.category), "detail": self.detail, "hint": self.hint}

    def __str__(self) -> str:
        """One line for people: detail, hint, code."""
        text = f"{self.detail} [{self.code}]"
        return f"{text} {self.hint}" if self.hint else text


class ContractError(EdgeError):
    """A document, name or stream breaks the contract."""
