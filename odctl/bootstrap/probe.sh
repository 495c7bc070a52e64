# Says what a host is and what of ours it holds, as one JSON object between two marks. Changes nothing.
# usage: sh -s -- PREFIX PYTHON VENV PACKAGES      (PREFIX may begin with ~/; PYTHON may be empty)
set -u
LC_ALL=C
export LC_ALL

text() { # a JSON string
    printf '"'
    printf '%s' "$1" | tr -d '\000-\037' | sed 's/\\/\\\\/g; s/"/\\"/g'
    printf '"'
}
file() { # a JSON string: base64 of a file, empty when there is none
    printf '"'
    if [ -f "$1" ]; then base64 <"$1" 2>/dev/null | tr -d '\n'; fi
    printf '"'
}
number() { # a JSON number; -1 stands for unlimited or unknown
    case $1 in '' | *[!0-9.]*) printf -- '-1' ;; *) printf '%s' "$1" ;; esac
}
truth() { if "$@" >/dev/null 2>&1; then printf true; else printf false; fi; }
modified() { number "$(date -r "$1" +%s.%N 2>/dev/null | sed 's/\.%N$//')"; }
is_ours() { # does the process in this pid file run for this prefix?
    [ -f "$1" ] || return 1
    pid=$(cat "$1") || return 1
    case $pid in '' | *[!0-9]*) return 1 ;; esac
    [ -r "/proc/$pid/cmdline" ] || return 1
    tr '\000' '\n' <"/proc/$pid/cmdline" | grep -Fqx -- "$prefix"
}
tell_python() {
    "$1" -c '
import importlib.metadata, importlib.util, json, platform, sys
packages = {}
for name in sys.argv[1].split():
    try:
        packages[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
has_venv = all(importlib.util.find_spec(name) for name in ("venv", "ensurepip"))
print(json.dumps({"path": sys.executable, "version": platform.python_version(), "has_venv": has_venv,
                  "packages": packages}))
' "$packages" 2>/dev/null | tail -n 1
}

main() {
    prefix=$1 python=$2 venv=$3 packages=$4
    case $prefix in '~/'*) prefix=$HOME/${prefix#'~/'} ;; esac
    case $python in '~/'*) python=$HOME/${python#'~/'} ;; esac
    uid=$(id -u)
    XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-/run/user/$uid}
    export XDG_RUNTIME_DIR

    printf '\n<<<odctl-probe\n{'
    printf '"now_s":%s' "$(date +%s.%N | sed 's/\.%N$//')"
    printf ',"os":'; text "$(. /etc/os-release 2>/dev/null; printf '%s' "${PRETTY_NAME:-$(uname -s)}")"
    printf ',"arch":'; text "$(uname -m)"
    printf ',"kernel":'; text "$(uname -r)"
    printf ',"libc":'; text "$(getconf GNU_LIBC_VERSION 2>/dev/null || ldd --version 2>&1 | head -n 1)"
    printf ',"uid":%s' "$uid"
    printf ',"user":'; text "$(id -un)"
    printf ',"boot_id":'; text "$(cat /proc/sys/kernel/random/boot_id 2>/dev/null)"
    printf ',"prefix":'; text "$prefix"
    printf ',"memlock_kib":%s' "$(number "$(ulimit -H -l 2>/dev/null)")"
    printf ',"has_gpu":%s' "$(truth test -e /dev/nvidiactl)"
    missing=
    for tool in tar base64 setsid mktemp find; do
        command -v "$tool" >/dev/null 2>&1 || missing="$missing $tool"
    done
    printf ',"missing_tools":'; text "${missing# }"

    # The nearest directory that exists tells what the prefix will be like.
    place=$prefix
    while [ ! -d "$place" ]; do place=$(dirname "$place"); done
    printf ',"exists":%s' "$(truth test -d "$prefix")"
    printf ',"disk_free_bytes":%s' "$(df -Pk "$place" | awk 'NR == 2 { printf "%.0f", $4 * 1024 }')"
    printf ',"filesystem":'; text "$(stat -f -c %T "$place" 2>/dev/null)"
    writable=false noexec=false
    if trial=$(mktemp "$place/.odctl-probe.XXXXXX" 2>/dev/null); then
        writable=true
        if printf '#!/bin/sh\nexit 0\n' >"$trial" 2>/dev/null && chmod 700 "$trial"; then
            "$trial" >/dev/null 2>&1 || noexec=true
        fi
        rm -f "$trial"
    fi
    printf ',"is_writable":%s,"is_noexec":%s' "$writable" "$noexec"

    # The manager itself must answer: a runtime directory alone may be left over from a session. And it serves
    # the account's own home: a host that lives in another one (a lab's) is none of its business.
    account_home=$(getent passwd "$uid" 2>/dev/null | cut -d: -f6)
    has_user_bus=false
    if [ "${account_home:-$HOME}" = "$HOME" ]; then has_user_bus=$(truth systemctl --user show-environment); fi
    printf ',"has_user_bus":%s' "$has_user_bus"
    printf ',"runtime_directory":'; text "$XDG_RUNTIME_DIR"
    printf ',"has_linger":%s' "$(truth test -e "/var/lib/systemd/linger/$(id -un)")"

    printf ',"pythons":['
    separator=
    built=
    if [ -f "$prefix/$venv/.complete" ]; then built=$prefix/$venv/bin/python; fi
    if [ -n "$python" ]; then set -- "$python" "$built"; else
        set -- "$built" python3 python3.14 python3.13 python3.12 python3.11
    fi
    seen=' '
    for candidate in "$@"; do
        found=$(command -v "$candidate" 2>/dev/null) || continue
        case $seen in *" $found "*) continue ;; esac
        seen="$seen$found "
        told=$(tell_python "$found")
        [ -n "$told" ] || continue
        printf '%s%s' "$separator" "$told"
        separator=,
    done
    printf ']'

    printf ',"current":'; text "$(basename "$(readlink "$prefix/current" 2>/dev/null)")"
    printf ',"interpreter":'; text "$(cat "$prefix/current/interpreter" 2>/dev/null)"
    printf ',"releases":'; text "$(ls -t "$prefix/releases" 2>/dev/null | tr '\n' ' ')"
    printf ',"entries":'; text "$(ls -A "$prefix" 2>/dev/null | tr '\n' ' ')"
    lock_s=-1
    if [ -d "$prefix/install.lock" ]; then lock_s=$(($(date +%s) - $(stat -c %Y "$prefix/install.lock"))); fi
    printf ',"lock_age_s":%s' "$lock_s"
    printf ',"manifest":'; file "$prefix/manifest.json"
    printf ',"config":'; file "$prefix/etc/agent.json"
    printf ',"ca":'; file "$prefix/etc/tls/ca.pem"
    printf ',"leaf":'; file "$prefix/etc/tls/host.pem"
    unit=$(ls "$prefix"/etc/odctl-agent-*.service 2>/dev/null | head -n 1)
    printf ',"unit":'; file "$unit"
    printf ',"has_key":%s' "$(truth test -s "$prefix/etc/tls/host.key")"
    newest=-1
    for path in etc/agent.json etc/tls/ca.pem etc/tls/host.pem; do
        at=$(modified "$prefix/$path")
        newest=$(printf '%s %s\n' "$newest" "$at" | awk '{ print ($1 > $2) ? $1 : $2 }' OFMT=%.6f CONVFMT=%.6f)
    done
    printf ',"configured_at_s":%s' "$newest"
    printf ',"has_socket":%s' "$(truth test -S "$prefix/run/agent.sock")"
    printf ',"is_agent_running":%s' "$(truth is_ours "$prefix/run/agent.pid")"
    printf ',"is_keeper_running":%s' "$(truth is_ours "$prefix/run/keeper.pid")"
    printf '}\nodctl-probe>>>\n'
}

# Read whole before it runs, and with no standard input: a child that reads would swallow the script.
main "$@" </dev/null
