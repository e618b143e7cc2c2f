"""Pipeline files that run the same commands as people do."""

import re
from typing import Final

from edge_contract.errors import EdgeError

SYSTEMS: Final = {"github": ".github/workflows/ship-model.yml", "azure": "azure-pipelines.yml"}
"""Where each system looks for its file, by name of the system."""

# Inside single quotes of YAML and of a shell nothing but these may stand.
_CONDITION: Final = re.compile(r"[A-Za-z0-9 _.=<>!(),\[\]*'-]{1,512}")

_HEAD: Final = """\
# Written by `packager ci {system}`. The pipeline proves, registers, builds, signs, publishes and deploys the model that
# {spec} describes, with the same command that people use.
#
# {secrets}
#   LIGHTERMAN_URL             base URL of the registry
#   LIGHTERMAN_TOKEN           an operator token
#   LIGHTERMAN_KEY_PASSPHRASE  pass phrase of the signing keys
#   LIGHTERMAN_KEYS_ARCHIVE    base64 of a tar archive of the folder of keys; put the image-targets key in it and leave
#                              both root keys out: a pipeline never needs them
"""

_SHIP: Final = """\
set -eu
umask 077
keys="$(mktemp -d)"
trap 'rm -rf "$keys"' EXIT
printf '%s' "$LIGHTERMAN_KEYS_ARCHIVE" | base64 -d | tar -x -C "$keys"
packager ship --spec {spec} --keys "$keys" --condition {condition} --wait --json"""


def pipeline(system: str, spec: str, condition: str, python: str, requirement: str) -> str:
    """The text of a pipeline file.

    Args:
        system: `github` or `azure`.
        spec: Path of the description file in the repository.
        condition: Devices that the pipeline deploys to.
        python: Version of Python.
        requirement: What pip installs the packager from.

    Raises:
        EdgeError: `config.invalid` for text that could break out of the file or the shell.
    """
    if system not in SYSTEMS:
        raise EdgeError("config.invalid", f"{system!r} is not a known system", f"Known: {', '.join(SYSTEMS)}.")
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,255}", spec) or spec.startswith("-"):
        raise EdgeError("config.invalid", f"{spec!r} is not a plain path for --spec")
    if not _CONDITION.fullmatch(condition):
        raise EdgeError("config.invalid", f"{condition!r} has characters that a pipeline file cannot carry")
    if not re.fullmatch(r"3\.\d{1,2}", python):
        raise EdgeError("config.invalid", f"{python!r} is not a version of Python like 3.12")
    if not re.fullmatch(r"[A-Za-z0-9._/:@+=<>,\[\]-]{1,255}", requirement) or requirement.startswith("-"):
        raise EdgeError("config.invalid", f"{requirement!r} is not something that pip could install from")
    quoted = "'" + condition.replace("'", "'\\''") + "'"
    script = _SHIP.format(spec=spec, condition=quoted)
    make = _github if system == "github" else _azure
    return make(spec, python, requirement, script)


def _indented(script: str, spaces: int) -> str:
    return "\n".join(" " * spaces + line for line in script.splitlines())


def _github(spec: str, python: str, requirement: str, script: str) -> str:
    head = _HEAD.format(system="github", spec=spec, secrets="It needs these secrets of the repository:")
    return f"""{head}
name: ship model
on:
  push:
    branches: [main]
  workflow_dispatch:
permissions:
  contents: read
concurrency:
  group: ship-model
  cancel-in-progress: false
jobs:
  ship:
    runs-on: ubuntu-latest
    timeout-minutes: 60
    steps:
      - uses: actions/checkout@v4
        with:
          lfs: true
      - uses: actions/setup-python@v5
        with:
          python-version: "{python}"
      - name: install the packager
        run: pip install '{requirement}'
      - name: ship
        env:
          LIGHTERMAN_URL: ${{{{ secrets.LIGHTERMAN_URL }}}}
          LIGHTERMAN_TOKEN: ${{{{ secrets.LIGHTERMAN_TOKEN }}}}
          LIGHTERMAN_KEY_PASSPHRASE: ${{{{ secrets.LIGHTERMAN_KEY_PASSPHRASE }}}}
          LIGHTERMAN_KEYS_ARCHIVE: ${{{{ secrets.LIGHTERMAN_KEYS_ARCHIVE }}}}
        run: |
{_indented(script, 10)}
"""


def _azure(spec: str, python: str, requirement: str, script: str) -> str:
    head = _HEAD.format(system="azure", spec=spec, secrets="It needs these secret variables of the pipeline:")
    return f"""{head}
trigger:
  branches:
    include: [main]
pool:
  vmImage: ubuntu-latest
jobs:
  - job: ship
    timeoutInMinutes: 60
    steps:
      - checkout: self
        lfs: true
      - task: UsePythonVersion@0
        inputs:
          versionSpec: "{python}"
      - bash: pip install '{requirement}'
        displayName: install the packager
      - bash: |
{_indented(script, 10)}
        displayName: ship
        env:
          LIGHTERMAN_URL: $(LIGHTERMAN_URL)
          LIGHTERMAN_TOKEN: $(LIGHTERMAN_TOKEN)
          LIGHTERMAN_KEY_PASSPHRASE: $(LIGHTERMAN_KEY_PASSPHRASE)
          LIGHTERMAN_KEYS_ARCHIVE: $(LIGHTERMAN_KEYS_ARCHIVE)
"""
