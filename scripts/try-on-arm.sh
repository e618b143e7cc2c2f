#!/usr/bin/env bash
# Tries the device side on an ARM system that this machine emulates: makes a Debian root file system for the
# architecture, puts a device's installation into it, and has the agent there enrol, take a model, swap it for the next
# and answer, against a registry and a broker of this machine.
#
# Usage: scripts/try-on-arm.sh arm64|arm64-litert|armhf        as root, on Debian; takes a minute or two
#   arm64          lighterman[agent,onnx] from wheels
#   arm64-litert   lighterman[agent,litert] from wheels
#   armhf          lighterman[agent] and tflite-runtime from wheels; numpy, httptools and cffi, which have none, from
#                  Debian
# Environment:
#   VENV    the environment to run the cloud's side from; .venv (make venv-dev makes it)
#
# Prints one JSON object on standard output; what happens meanwhile goes to standard error. Everything is made in a
# temporary folder that is removed. What stays: the Debian packages this needs, and what qemu-user-static's own
# installation does too, the kernel's rule that programs of that architecture are run by qemu. Traffic other than
# downloads of packages stays on loopback; the system in the folder shares it.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
repository=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "error: $1" >&2
    exit 2
}

case ${1:-} in
    arm64 | arm64-litert)
        architecture=arm64 qemu=qemu-aarch64 machine=aarch64
        debian=(base-files python3 libstdc++6)
        ;;
    armhf)
        architecture=armhf qemu=qemu-arm machine=armv7l
        debian=(base-files python3 python3-numpy python3-httptools python3-cffi-backend libstdc++6)
        ;;
    *)
        echo "usage: scripts/try-on-arm.sh arm64|arm64-litert|armhf" >&2
        exit 2
        ;;
esac
(($# == 1)) || fail "one at a time, not $*"
profile=$1

((EUID == 0)) || fail "this makes devices and mounts in a folder of its own: run it as root"
command -v apt-get >/dev/null || fail "this needs Debian's apt-get"
python=$repository/${VENV:-.venv}/bin/python
[[ ${VENV:-} == /* ]] && python=$VENV/bin/python
"$python" -c 'import ai_edge_litert, device_sim, onnx, pytest' 2>/dev/null ||
    fail "$python is not there or lacks what the tests need: make venv-dev"

# Mounts end with this process, however it ends.
if [[ ${LIGHTERMAN_ARM_MOUNTS:-} != "$$" ]]; then
    export LIGHTERMAN_ARM_MOUNTS=$$
    exec unshare --mount --propagation private "$0" "$@"
fi

missing=()
for need in mosquitto:mosquitto qemu-user-static:"$qemu-static" binfmt-support:update-binfmts mmdebstrap:mmdebstrap; do
    command -v "${need#*:}" >/dev/null || missing+=("${need%:*}")
done
if ((${#missing[@]})); then
    echo "installing ${missing[*]}" >&2
    # Debian asks this file before it starts a service; 101 means "not now". Only where the machine has none of its own.
    policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt() {
        DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >&2
    }
    apt update || echo "warning: the package lists could not be refreshed" >&2
    apt install -y --no-install-recommends "${missing[@]}"
    if [[ -n $(trap -p EXIT) ]]; then
        rm -f "$policy"
        trap - EXIT
    fi
fi

binfmt=/proc/sys/fs/binfmt_misc
mountpoint -q "$binfmt" || mount -t binfmt_misc binfmt_misc "$binfmt"
[[ -e $binfmt/$qemu ]] || update-binfmts --enable "$qemu" >&2
[[ -e $binfmt/$qemu ]] || fail "the kernel does not run programs of $architecture: update-binfmts --enable $qemu"

work=$(mktemp -d)
trial=
finish() {
    [[ -z $trial ]] || kill "$trial" 2>/dev/null || true
    [[ -z $trial ]] || wait "$trial" || true
    umount "$work/root/proc" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# -- the system ---------------------------------------------------------------------------------------------------
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-cache policy | sed -n "s#.* \(http[^ ]*\) $suite/main.*#\1#p" | head -n 1)
[[ -n $mirror ]] || fail "apt has no mirror of Debian's $suite over http"
root=$work/root
started=$EPOCHREALTIME
echo "making a root file system of Debian $suite for $architecture" >&2
# Unpacked and not configured: no program of the other architecture has to run, which would take minutes.
mmdebstrap --quiet --variant=extract --arch="$architecture" --include="$(IFS=, && echo "${debian[*]}")" \
    "$suite" "$root" "$mirror" >&2
mkdir -p "$root"/{dev,proc,tmp,run}
[[ -e $root/dev/null ]] || mknod -m 666 "$root/dev/null" c 1 3
[[ -e $root/dev/urandom ]] || mknod -m 666 "$root/dev/urandom" c 1 9
# /sys stays away: what it says is this machine's processor, and ONNX Runtime believes it.
mount -t proc proc "$root/proc"
version=$(readlink "$root/usr/bin/python3")
version=${version#python}
seconds() { # SINCE
    awk -v since="$1" -v now="$EPOCHREALTIME" 'BEGIN { printf "%.1f", now - since }'
}
steps=(--step "root file system=$(seconds "$started")")

# -- the installation ---------------------------------------------------------------------------------------------
started=$EPOCHREALTIME
echo "installing the device's side for Python $version" >&2
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
# From a copy: a build in the tree leaves folders that a later build would pick up.
mkdir "$work/source"
(cd "$repository" && cp -R edge_contract edge_delta edge_agent packager cloud_registry device_sim pyproject.toml README.md LICENSE \
    "$work/source/")
"$python" -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheel" "$work/source" >&2
wheel=$(echo "$work"/wheel/lighterman-*.whl)
# Our own versions: the lock is the list of what may be taken, here with the marks of the device's Python.
"$python" - "$repository/requirements.lock" "$version" >"$work/constraints.txt" <<'PYTHON'
import pathlib
import sys

from packaging.requirements import Requirement

lock, version = sys.argv[1:]
for line in pathlib.Path(lock).read_text(encoding="utf-8").splitlines():
    if "==" in line:
        wanted = Requirement(line.rstrip(" \\"))
        device = {"python_version": version, "python_full_version": f"{version}.0"}
        if wanted.marker is None or wanted.marker.evaluate(device):
            print(f"{wanted.name}{wanted.specifier}")
PYTHON
site=$root/usr/local/lib/python$version/dist-packages
mkdir -p "$site"
pip=("$python" -m pip install --quiet --no-compile --target "$site"
    --only-binary=:all: --constraint "$work/constraints.txt"
    --python-version "$version" --implementation cp --abi "cp${version/./}" --abi abi3 --abi none)
# pip takes a wheel's mark literally: one mark for every glibc up to that of Debian 12.
for ((minor = 17; minor <= 36; minor++)); do
    pip+=(--platform "manylinux_2_${minor}_$machine")
done
pip+=(--platform "manylinux2014_$machine" --platform "linux_$machine")
case $profile in
    arm64) "${pip[@]}" "$wheel[agent,onnx]" >&2 ;;
    arm64-litert) "${pip[@]}" "$wheel[agent,litert]" >&2 ;;
    # Named one by one: cryptography wants cffi, which has no wheel for 32 bits; Debian's serves.
    armhf)
        "${pip[@]}" --no-deps "$wheel" click cryptography paho-mqtt securesystemslib tflite-runtime==2.14.0 tuf urllib3 >&2
        ;;
esac
# The scripts that pip made begin with this machine's interpreter.
sed -i '1s|^#!.*|#!/usr/bin/python3|' "$site/bin/edge-agent"
mkdir -p "$root/usr/local/bin"
ln -s "../lib/python$version/dist-packages/bin/edge-agent" "$root/usr/local/bin/edge-agent"
steps+=(--step "installation=$(seconds "$started")")

# -- deltas ------------------------------------------------------------------------------------------------------
# What was encoded on x86 makes the same bytes here, with this machine's BLAS; 32-bit ARM fetches whole files.
if [[ $profile != armhf ]]; then
    started=$EPOCHREALTIME
    mkdir -p "$root/opt/deltas"
    cp "$repository"/tests/unit/delta/golden/* "$repository/tests/unit/delta/golden_decode.py" "$root/opt/deltas/"
    chroot "$root" /usr/bin/python3 /opt/deltas/golden_decode.py /opt/deltas >&2
    steps+=(--step "deltas=$(seconds "$started")")
fi

# -- the trial ----------------------------------------------------------------------------------------------------
mkdir "$work/cloud"
cd "$repository"
"$python" -m tests.integration.arm_device --root "$root" --profile "$profile" --folder "$work/cloud" \
    "${steps[@]}" &
trial=$!
code=0
wait "$trial" || code=$?
trial=
exit "$code"
