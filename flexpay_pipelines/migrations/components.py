"""The components of the schema, the database that each lives in, and what each needs: declared here and nowhere else.

What belongs here: the graph of components and walks over it. What does not: their files (`files`) and what is deployed
(`planning`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from flexpay_pipelines.database import BILLING, CONTROL
from flexpay_pipelines.errors import BadInput


@dataclass(frozen=True, slots=True)
class Component:
    """A part of the schema that is deployed and reverted alone.

    `database` is `billing` or `control`; `depends_on` names the components that must be there first.
    """

    name: str
    database: str
    depends_on: tuple[str, ...] = ()


# In deployment order: a component stands behind all that it depends on.
COMPONENTS: Mapping[str, Component] = MappingProxyType(
    {
        component.name: component
        for component in (
            Component("core", BILLING),
            Component("frequencies", BILLING, ("core",)),
            Component("pauses", BILLING, ("core",)),
            Component("rewards", BILLING, ("core",)),
            Component("analytics", BILLING, ("core",)),
            Component("ops", CONTROL),
        )
    }
)

# The schemas that migrations make and that are watched for drift. `archive` is not: rollbacks fill it by design.
SCHEMAS: Mapping[str, tuple[str, ...]] = MappingProxyType({BILLING: ("billing", "analytics"), CONTROL: ("ops",)})


def component_named(name: str) -> Component:
    """The component of that name.

    Raises:
        BadInput: there is none; the message lists those that are known.
    """
    try:
        return COMPONENTS[name]
    except KeyError:
        raise BadInput(f"There is no component '{name}': known are {', '.join(COMPONENTS)}.") from None


def with_dependencies(names: Sequence[str]) -> tuple[Component, ...]:
    """The components named and all that they depend on, in the order in which they are deployed.

    Raises:
        BadInput: a name is unknown, or the components live in different databases.
    """
    wanted: set[str] = set()
    pending = [component_named(name) for name in names]
    while pending:
        component = pending.pop()
        if component.name not in wanted:
            wanted.add(component.name)
            pending.extend(COMPONENTS[name] for name in component.depends_on)
    ordered = _in_order(wanted)
    if len({component.database for component in ordered}) > 1:
        raise BadInput(
            "These components live in different databases, deploy them one database at a time: "
            + ", ".join(f"{component.name} ({component.database})" for component in ordered)
            + "."
        )
    return ordered


def with_dependents(name: str) -> tuple[Component, ...]:
    """The component and all that depend on it, in the order in which they are reverted: dependents first.

    Raises:
        BadInput: the name is unknown.
    """
    found = {component_named(name).name}
    for component in COMPONENTS.values():  # in deployment order, so that one pass finds dependents of dependents
        if found.intersection(component.depends_on):
            found.add(component.name)
    return tuple(reversed(_in_order(found)))


def _in_order(names: Iterable[str]) -> tuple[Component, ...]:
    chosen = set(names)
    return tuple(component for component in COMPONENTS.values() if component.name in chosen)
