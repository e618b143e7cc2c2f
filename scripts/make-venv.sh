#!/usr/bin/env bash
# Makes a virtual environment from a hashed lock and installs this project into it.
#
# Usage: scripts/make-venv.sh FOLDER LOCKFILE
# Environment:
#   PYTHON   the interpreter to use; otherwise python3 where its version fits, else python3.13, 3.12 or 3.11 of PATH
#
# May be called again at any time: what is installed already is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

if (($# != 2)); then
    echo "usage: scripts/make-venv.sh FOLDER LOCKFILE" >&2
    exit 2
fi
venv=$1
lock=$2

fail() {
    echo "error: $1" >&2
    exit 2
}

is_supported() { # PROGRAM
    "$1" -c 'import sys; sys.exit(not ((3, 11) <= sys.version_info[:2] < (3, 14)))' >/dev/null 2>&1
}

version_of() { # PROGRAM
    "$1" -c 'import sys; sys.stdout.write("Python %d.%d.%d" % sys.version_info[:3])' 2>/dev/null || echo "not a Python that runs"
}

pick_python() {
    local candidate
    if [[ -n ${PYTHON:-} ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a program on this machine"
        is_supported "$PYTHON" ||
            fail "PYTHON=$PYTHON is $(version_of "$PYTHON"): Lighterman needs Python 3.11, 3.12 or 3.13"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if command -v "$candidate" >/dev/null && is_supported "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11, 3.12 or 3.13 found: install one (Debian 12: apt-get install python3 python3-venv), or name it with PYTHON=/path/to/python3.12"
}

# Debian splits the standard library: without python3-venv an environment has no pip.
ensure_venv_module() { # PROGRAM
    "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    local version package as_root=()
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    package=python$version-venv
    if ((EUID != 0)); then
        as_root=(sudo -n)
    fi
    if command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }; then
        echo "$1 cannot make virtual environments yet: installing $package" >&2
        "${as_root[@]}" apt-get update -qq >&2 &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 "$package" >&2 &&
            "$1" -c 'import ensurepip, venv' >/dev/null 2>&1 && return
    fi
    fail "$1 has no venv module: install it with 'sudo apt-get install $package' and run this again"
}

# One library of the tests comes as C source.
ensure_compiler() { # PROGRAM
    local version packages as_root=()
    grep -q '^python-qpid-proton==' "$lock" || return 0
    command -v cc >/dev/null && [[ -e $("$1" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h ]] && return
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    packages=(gcc libc6-dev "libpython$version-dev")
    if ((EUID != 0)); then
        as_root=(sudo -n)
    fi
    if command -v apt-get >/dev/null && { ((EUID == 0)) || sudo -n true 2>/dev/null; }; then
        echo "the tests need a C compiler: installing ${packages[*]}" >&2
        "${as_root[@]}" apt-get update -qq >&2 &&
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -qq -y --no-install-recommends -o DPkg::Lock::Timeout=120 "${packages[@]}" >&2 && return
    fi
    fail "the tests need a C compiler: install it with 'sudo apt-get install ${packages[*]}' and run this again"
}

python=$(pick_python)
ensure_venv_module "$python"
ensure_compiler "$python"

if [[ -e $venv/bin/python ]] && ! is_supported "$venv/bin/python"; then
    fail "the virtual environment $venv does not work any more: remove it ('make clean-venv') and run this again"
fi
if [[ ! -x $venv/bin/pip ]]; then
    echo "making $venv with $("$python" --version)"
    "$python" -m venv "$venv"
fi

export PIP_DISABLE_PIP_VERSION_CHECK=1
echo "installing $(grep -c '==' "$lock") packages of $lock (the first time takes a minute)"
"$venv/bin/python" -m pip install --quiet --require-hashes --requirement "$lock"
# The build backend came with the lock, so nothing else is fetched here. Its only warning is that this is editable.
PYTHONWARNINGS=ignore "$venv/bin/python" -m pip install --quiet --no-deps --no-build-isolation --editable .
