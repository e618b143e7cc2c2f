#!/usr/bin/env bash
# Says how much disk an installation on a device takes: lighterman with the roles agent and onnx, in a fresh environment.
#
# Usage: scripts/device-install-size.sh [ROLES]        ROLES defaults to agent,onnx
# Prints one JSON object; figures are in MB of 1,000,000 bytes, as the files are, before and after byte compilation.
set -euo pipefail
cd "$(dirname "$0")/.."

roles=${1:-agent,onnx}
python=${PYTHON:-}
if [[ -z $python ]]; then
    python=${VENV:-.venv}/bin/python
    [[ -x $python ]] || python=python3
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$python" -m venv --without-pip "$work/venv"
# Our own versions: the lock is the list of what may be taken.
grep -E '^[A-Za-z0-9._-]+(\[[^]]*\])?==' requirements.lock | sed -e 's/ *\\$//' -e 's/\[[^]]*\]//' >"$work/constraints.txt"
# From a copy: a build in the tree leaves folders that a later build would pick up.
mkdir "$work/source"
cp -R edge_contract edge_delta edge_agent packager cloud_registry device_sim pyproject.toml README.md LICENSE "$work/source/"
export PIP_DISABLE_PIP_VERSION_CHECK=1
"$python" -m pip --python "$work/venv/bin/python" install --quiet --no-compile \
    --constraint "$work/constraints.txt" "$work/source[$roles]"

"$work/venv/bin/python" -I - "$roles" "$work/venv" <<'PYTHON'
import compileall
import importlib.metadata
import json
import pathlib
import sys

roles, folder = sys.argv[1], pathlib.Path(sys.argv[2])


def megabytes(path: pathlib.Path) -> float:
    return round(sum(item.lstat().st_size for item in path.rglob("*") if item.is_file()) / 1e6, 1)


site_packages = next(folder.glob("lib/python*/site-packages"))
plain = megabytes(folder)
largest = sorted(((megabytes(item), item.name) for item in site_packages.iterdir() if item.is_dir()), reverse=True)[:6]
compileall.compile_dir(site_packages, quiet=2)
distributions = sorted(f"{item.name} {item.version}" for item in importlib.metadata.distributions())
print(
    json.dumps(
        {
            "roles": roles,
            "python": "%d.%d.%d" % sys.version_info[:3],
            "files_mb": plain,
            "files_with_bytecode_mb": megabytes(folder),
            "largest_mb": {name: size for size, name in largest},
            "distributions": distributions,
        },
        indent=2,
    )
)
PYTHON
