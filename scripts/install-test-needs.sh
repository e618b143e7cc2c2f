#!/usr/bin/env bash
# Installs the Debian packages that the tests use, where that is possible without asking anybody.
#
# Needs apt-get, and root or password-less sudo. Anywhere else it says what is missing and ends well: the tests that
# need a missing program skip with the reason (with LIGHTERMAN_REQUIRE_SYSTEM=1 they fail, and so does this).
#
# The tests start brokers and databases of their own on loopback ports. The services these packages would start are
# kept from starting while they are installed here, and disabled; services that were there before are not touched.
set -euo pipefail

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
required=${LIGHTERMAN_REQUIRE_SYSTEM:-}

# package, and the program that shows that it is there
needs=(
    "mosquitto mosquitto"
    "mosquitto-clients mosquitto_pub"
    "skopeo skopeo"
    "docker-registry docker-registry"
    "umoci umoci"
    "crun crun"
    "mmdebstrap mmdebstrap"
    "postgresql initdb"
    "strace strace"
    "softhsm2 softhsm2-util"
    "prometheus promtool"
)
services=(mosquitto docker-registry postgresql prometheus)

is_present() { # PROGRAM
    case $1 in
        initdb) compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || command -v initdb >/dev/null ;;
        *) command -v "$1" >/dev/null ;;
    esac
}

missing_packages() {
    local need
    for need in "${needs[@]}"; do
        is_present "${need#* }" || echo "${need% *}"
    done
}

mapfile -t missing < <(missing_packages)
((${#missing[@]})) || exit 0

as_root=()
if ((EUID != 0)); then
    as_root=(sudo -n)
fi
if ! command -v apt-get >/dev/null || { ((EUID != 0)) && ! sudo -n true 2>/dev/null; }; then
    echo "not installed, and this user may not install them: ${missing[*]}" >&2
    echo "the tests that need them will skip; to have them all run: sudo apt-get install ${missing[*]}" >&2
    if [[ -n $required && $required != 0 ]]; then
        exit 1
    fi
    exit 0
fi

apt() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@"
}

# Debian asks this file before it starts a service; 101 means "not now". Only where the machine has none of its own.
policy=/usr/sbin/policy-rc.d
if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' | "${as_root[@]}" tee "$policy" >/dev/null
    "${as_root[@]}" chmod 755 "$policy"
    trap '"${as_root[@]}" rm -f "$policy"' EXIT
fi

echo "installing for the tests: ${missing[*]}"
apt update || echo "warning: the package lists could not be refreshed" >&2
if ! apt install -y --no-install-recommends "${missing[@]}" >/dev/null; then
    # One package that this release does not have should not cost the others.
    for package in "${missing[@]}"; do
        apt install -y --no-install-recommends "$package" >/dev/null ||
            echo "warning: $package could not be installed" >&2
    done
fi

if command -v systemctl >/dev/null; then
    for service in "${services[@]}"; do
        if [[ " ${missing[*]} " == *" $service "* ]]; then
            "${as_root[@]}" systemctl disable --quiet --now "$service" 2>/dev/null || true
        fi
    done
fi

mapfile -t missing < <(missing_packages)
if ((${#missing[@]})); then
    echo "still missing: ${missing[*]}" >&2
    if [[ -n $required && $required != 0 ]]; then
        exit 1
    fi
fi
