"""The search for a target through delegations (TUF specification 1.0, 5.6.7). Pure."""

from collections.abc import Callable

from tuf.api.metadata import TargetFile, Targets

from edge_agent.limits import DELEGATIONS_MAX
from edge_agent.trust.target import Target


class Search:
    """A preorder walk through delegations that asks for one role at a time, so that it needs no network itself."""

    def __init__(self, trusted: Callable[[str], Targets], path: str) -> None:
        """Start at the top-level targets; `TrustedSet.search` is the way here."""
        self._trusted = trusted
        self._path = path
        self._pending: list[tuple[str, str]] = []
        self._seen: set[str] = {"targets"}
        self.found: Target | None = None
        self._visit("targets")

    def next_role(self) -> tuple[str, str] | None:
        """The role whose metadata is needed next, with its delegator; none when the search is over.

        Take the role's metadata with `TrustedSet.update_targets` unless `TrustedSet.has_targets`, then call `take`.
        """
        if self.found is not None or len(self._seen) > DELEGATIONS_MAX:
            return None
        while self._pending:
            role, delegator = self._pending[-1]
            if role not in self._seen:
                return role, delegator
            self._pending.pop()
        return None

    def take(self) -> None:
        """Look into the role that `next_role` named; its metadata is trusted now."""
        role, _ = self._pending.pop()
        self._seen.add(role)
        self._visit(role)

    def _visit(self, role: str) -> None:
        targets = self._trusted(role)
        file = targets.targets.get(self._path)
        if file is not None:
            self.found = as_target(file)
        if self.found is not None or targets.delegations is None:
            return
        children = []
        for child, is_terminating in targets.delegations.get_roles_for_target(self._path):
            children.append((child, role))
            if is_terminating:
                self._pending.clear()  # nothing outside this delegation may answer any more
                break
        self._pending.extend(reversed(children))


def as_target(file: TargetFile) -> Target:
    """What python-tuf read of a target."""
    return Target(file.path, file.length, file.hashes, file.unrecognized_fields.get("custom"))
