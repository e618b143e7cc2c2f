#!/usr/bin/env bash
# Installs the Debian packages that `python -m benchmarks delta` measures beside our own deltas.
#
# Needs apt-get, and root or password-less sudo. Anywhere else it says what is missing and ends well: the benchmark
# leaves out the tools that are not there, and says so.
set -euo pipefail

# The packages, and the program that shows that each is there.
needs=(casync xdelta3 xz-utils zstd)
programs=(casync xdelta3 xz zstd)

missing=()
for index in "${!needs[@]}"; do
    command -v "${programs[index]}" >/dev/null || missing+=("${needs[index]}")
done
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
    as_root=(sudo -n)
fi
if ! command -v apt-get >/dev/null || { ((EUID != 0)) && ! sudo -n true 2>/dev/null; }; then
    echo "not installed, and this user may not install them: ${missing[*]}" >&2
    echo "to have them measured too: sudo apt-get install ${missing[*]}" >&2
    exit 0
fi
echo "installing for the benchmark of deltas: ${missing[*]}"
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120)
"${apt[@]}" update || echo "warning: the package lists could not be refreshed" >&2
"${apt[@]}" install -y --no-install-recommends "${missing[@]}" >/dev/null
