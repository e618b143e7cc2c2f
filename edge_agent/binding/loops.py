"""Which bindings of a device may run: none whose predictions come back to itself, over whatever other bindings."""

from collections.abc import Iterator, Mapping, Sequence

from edge_contract.bindings import Binding, topic_problem

Admitted = dict[str, tuple[Binding, ...]]
Refused = dict[tuple[str, str], str]


def admit(modules: Mapping[str, Sequence[Binding]]) -> tuple[Admitted, Refused]:
    """Split the bindings of all modules, their names filled in, into those that run and those that do not.

    A bundle's own bindings were checked when its descriptor was read; what two bundles do to each other, and what the
    names of this device and module make of a template, shows only here. Decided in the order of names, so that the
    same set gives the same answer on every start.

    Returns:
        Bindings by module (all modules are there), and why the others do not run, by module and binding.
    """
    refused: Refused = {}
    taken: list[tuple[str, Binding]] = []
    for module, binding in _in_order(modules):
        if problem := _problem(binding):
            refused[module, binding.name] = problem
        elif way := _way_back(binding, [other for _, other in taken]):
            names = " -> ".join(step.name for step in way)
            refused[module, binding.name] = f"its predictions would come back to it: {names}"
        else:
            taken.append((module, binding))
    admitted = {module: tuple(binding for owner, binding in taken if owner == module) for module in modules}
    return admitted, refused


def _in_order(modules: Mapping[str, Sequence[Binding]]) -> Iterator[tuple[str, Binding]]:
    for module in sorted(modules):
        for binding in sorted(modules[module], key=lambda item: item.name):
            yield module, binding


def _problem(binding: Binding) -> str:
    for key, topic, is_filter in (
        ("input_topic", binding.input_topic, True),
        ("output_topic", binding.output_topic, False),
        ("error_topic", binding.error_topic, False),
        ("response_topics", binding.response_topics, True),
    ):
        if topic and (problem := topic_problem(topic, is_filter)):
            return f"{key} {topic!r} {problem}"
    return ""


def _way_back(start: Binding, others: Sequence[Binding]) -> tuple[Binding, ...]:
    """The bindings that lead from one back to itself; empty when none do."""
    known = [start, *others]
    seen: set[int] = set()
    ways: list[tuple[Binding, ...]] = [(start,)]
    while ways:
        way = ways.pop()
        for other in known:
            if not way[-1].feeds(other):
                continue
            if other is start:
                return (*way, start)
            if id(other) not in seen:
                seen.add(id(other))
                ways.append((*way, other))
    return ()
