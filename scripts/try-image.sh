#!/usr/bin/env bash
# Builds the image of deploy/container and runs a bundle in it, without any container daemon: a base image is made from
# Debian's packages, buildah runs the Containerfile, and the image's files become the read-only root of process 1 of a
# process namespace of its own, as user 65532 without capabilities, with one folder to write to.
#
# Usage: scripts/try-image.sh BUNDLE        as root, on Debian; takes two minutes. BUNDLE is an OCI layout with one bundle
#
# Needs buildah and mmdebstrap (apt-get install --no-install-recommends buildah mmdebstrap). Prints the service's start
# line and what it answers; progress goes to standard error. Everything is made in a temporary folder that is removed.
# Packages come from where apt and pip of this machine get theirs. What it does not show: a container engine's seccomp
# profile and control groups.
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
repository=$(cd "$(dirname "$0")/.." && pwd)

fail() {
    echo "error: $1" >&2
    exit 2
}

(($# == 1)) && [[ -f $1/index.json ]] || fail "usage: scripts/try-image.sh BUNDLE"
bundle=$(cd "$1" && pwd)
((EUID == 0)) || fail "this makes mounts: run it as root"
for program in buildah mmdebstrap unshare setpriv curl python3; do
    command -v "$program" >/dev/null || fail "$program is not installed"
done

# Mounts end with this process, however it ends.
if [[ ${LIGHTERMAN_IMAGE_MOUNTS:-} != "$$" ]]; then
    export LIGHTERMAN_IMAGE_MOUNTS=$$
    exec unshare --mount --propagation private "$0" "$@"
fi

work=$(mktemp -d)
service=
builder() {
    TMPDIR=$work STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot buildah --root "$work/store" --runroot "$work/run" "$@"
}
finish() {
    [[ -z $service ]] || kill "$service" 2>/dev/null || true
    [[ -z $service ]] || wait "$service" || true
    builder umount --all >/dev/null 2>&1 || true
    rm -rf --one-file-system "$work"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# -- a base image, as good as the one that the Containerfile names ------------------------------------------------
suite=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
mirror=$(apt-cache policy | sed -n "s#.* \(http[^ ]*\) $suite/main.*#\1#p" | head -n 1)
[[ -n $mirror ]] || fail "apt has no mirror of Debian's $suite over http"
echo "making a base image of Debian $suite" >&2
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates "$suite" "$work/root" "$mirror" >&2
ln -sf python3 "$work/root/usr/bin/python"
container=$(builder from scratch)
builder copy --quiet "$container" "$work/root" / >&2
builder config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
builder commit --quiet "$container" localhost/base:1 >&2
rm -rf --one-file-system "$work/root"

# -- the image ----------------------------------------------------------------------------------------------------
echo "building the image" >&2
mkdir "$work/source"
(cd "$repository" && cp -R edge_contract edge_delta edge_agent pyproject.toml README.md LICENSE requirements.lock "$work/source/")
settings=()
for file in /etc/pip.conf "$HOME/.config/pip/pip.conf" /etc/ssl/certs/ca-certificates.crt; do
    [[ ! -f $file ]] || settings+=(--volume "$file:$file:ro")
done
builder build --isolation chroot --network host --pull-never "${settings[@]}" \
    --build-arg PYTHON_IMAGE=localhost/base:1 -f "$repository/deploy/container/Containerfile" \
    -t lighterman-serve "$work/source" >"$work/build.log" 2>&1 || { tail -n 30 "$work/build.log" >&2; fail "the build"; }

# -- a container from it ------------------------------------------------------------------------------------------
echo "running it" >&2
container=$(builder from --pull-never localhost/lighterman-serve)
root=$(builder mount "$container")
mkdir -p "$root"/{work,bundle}
digest=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["manifests"][0]["digest"])' "$bundle/index.json")
cat >"$work/contain.sh" <<'CONTAIN'
set -e
root=$1 bundle=$2
shift 2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o nosuid,nodev,mode=0700,uid=65532,gid=65532,size=256m tmpfs "$root/work"
mount --bind "$bundle" "$root/bundle"
mount -o remount,bind,ro "$root"
exec env -i PATH=/opt/lighterman/bin:/usr/sbin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 /usr/sbin/chroot "$root" \
    setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set=-all edge-agent serve "$@"
CONTAIN
unshare --pid --fork --kill-child --mount sh "$work/contain.sh" "$root" "$bundle" \
    /bundle --digest "$digest" --port 0 --work-dir /work --json >"$work/out" 2>"$work/err" &
service=$!
for ((tries = 0; tries < 300; tries++)); do
    ! grep -q '"event": "serving"' "$work/out" || break
    kill -0 "$service" 2>/dev/null || break
    sleep 0.2
done
cat "$work/out"
grep -q '"event": "serving"' "$work/out" || { tail -n 20 "$work/err" >&2; fail "the service did not begin"; }
port=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["port"])' "$work/out")
curl --fail --silent --show-error "http://127.0.0.1:$port/v2/health/ready"
echo
first=$(cat "/proc/$service/task/$service/children")
kill -TERM "${first// /}"
wait "$service" || fail "the service ended with exit code $?"
service=
echo "ended in order" >&2
