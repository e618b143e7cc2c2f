#!/usr/bin/env bash
# Refreshes requirements.lock (every role) and requirements-dev.lock (the same and the tests' needs).
#
# Usage: scripts/lock.sh [--check] [uv options such as --upgrade or --upgrade-package NAME]
#   --check   changes nothing; fails when pyproject.toml asks for something the locks do not hold
#
# The locks hold names, versions and hashes, for every supported Python at once, and say nothing of where packages come
# from. Without options the versions already locked are kept wherever pyproject.toml still allows them.
set -euo pipefail
cd "$(dirname "$0")/.."

UV=${UV:-}
if [[ -z $UV ]]; then
    for candidate in "${VENV:-.venv}/bin/uv" "$(command -v uv || true)"; do
        if [[ -n $candidate && -x $candidate ]]; then
            UV=$candidate
            break
        fi
    done
fi
if [[ -z $UV ]]; then
    echo "error: uv is not installed: run 'make venv-dev' first, or set UV to the program" >&2
    exit 2
fi
PYTHON_BIN=${VENV:-.venv}/bin/python
[[ -x $PYTHON_BIN ]] || PYTHON_BIN=$(command -v python3)

check=no
if [[ ${1:-} == --check ]]; then
    check=yes
    shift
fi

roles=(agent onnx litert delta azure azure-cloud packager cloud hsm mlflow sim)

# pip builds our own project without isolation, from what the lock installs: so the build backend is locked too.
build_requirements=$("$PYTHON_BIN" - <<'PYTHON'
import tomllib
with open("pyproject.toml", "rb") as file:
    print("\n".join(tomllib.load(file)["build-system"]["requires"]))
PYTHON
)

compile() { # OUTPUT [uv options...]
    local output=$1
    shift
    local extras=()
    for role in "${roles[@]}"; do
        extras+=(--extra "$role")
    done
    "$UV" pip compile --quiet --universal --generate-hashes --no-annotate --no-header \
        --python "$PYTHON_BIN" --python-version 3.11 \
        "${extras[@]}" "$@" pyproject.toml - --output-file "$output" <<<"$build_requirements" >/dev/null
}

if [[ $check == yes ]]; then
    work=$(mktemp -d)
    trap 'rm -rf "$work"' EXIT
    cp requirements.lock requirements-dev.lock "$work/"
    compile "$work/requirements.lock" "$@"
    compile "$work/requirements-dev.lock" --extra iothub --extra dev "$@"
    for lock in requirements.lock requirements-dev.lock; do
        if ! cmp -s "$lock" "$work/$lock"; then
            echo "error: $lock does not match pyproject.toml: run 'make lock'" >&2
            exit 1
        fi
    done
    exit 0
fi

compile requirements.lock "$@"
# What both hold has one version in both.
constraints=$(mktemp)
trap 'rm -f "$constraints"' EXIT
grep -E '^[A-Za-z0-9._\[,-]+\]?==' requirements.lock | sed -e 's/ *\\$//' -e 's/\[[^]]*\]//' >"$constraints"
compile requirements-dev.lock --extra iothub --extra dev --constraint "$constraints" "$@"
