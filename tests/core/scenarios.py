"""All scenario rows: what happens → which commands follow → what is reported → how it ends."""

from typing import Final

from tests.core import (
    scenarios_endings,
    scenarios_keeping,
    scenarios_modules,
    scenarios_people,
    scenarios_phases,
    scenarios_proofs,
    scenarios_trials,
)
from tests.core.script import Row

ROWS: Final[tuple[Row, ...]] = (
    *scenarios_endings.ENDINGS,
    *scenarios_proofs.COMMITS,
    *scenarios_proofs.PROBATIONS,
    *scenarios_trials.TRIALS,
    *scenarios_people.LEAVE,
    *scenarios_people.HOLDS,
    *scenarios_modules.ALONE,
    *scenarios_modules.MODULES,
    *scenarios_keeping.KEEPING,
    *scenarios_phases.ROWS,
)
