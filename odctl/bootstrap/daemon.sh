# Starts and stops the detached agent of a prefix. usage: sh -s -- stop|start|restart|stop-all PREFIX
# `stop` ends keeper and agent and leaves engine ranks and gateways alone; `stop-all` ends those too.
set -u
STOP_STEPS=150 # of 0.1 s

short_pause() { sleep 0.1 2>/dev/null || sleep 1; }

# Prints the pids of our processes of this prefix: `$1` is a pattern for the module after `python -m`.
ours() {
    for path in $(grep -lsF -- "$prefix" /proc/[0-9]*/cmdline); do
        pid=${path#/proc/}
        pid=${pid%/cmdline}
        cat "$path" 2>/dev/null | tr '\000' '\n' | awk -v prefix="$prefix" -v wanted="$1" '
            previous == "-m" && $0 ~ ("^(" wanted ")$") { is_ours = 1 }
            $0 ~ /\/agent\/keeper\.sh$/ && index($0, prefix "/") == 1 { is_keeper = 1 }
            $0 == prefix || index($0, prefix "/") == 1 { is_here = 1 }
            { previous = $0 }
            END { exit !(is_here && (is_ours || (is_keeper && wanted ~ /keeper/))) }
        ' && printf '%s ' "$pid"
    done
    return 0
}

end() { # TERM, wait, KILL
    steps=0
    while pids=$(ours "$1") && [ -n "$pids" ]; do
        if [ "$steps" -eq 0 ]; then kill -TERM $pids 2>/dev/null; fi
        # A stopped process does not see TERM before it runs again.
        if [ "$steps" -eq 10 ]; then kill -CONT $pids 2>/dev/null; fi
        if [ "$steps" -ge "$STOP_STEPS" ]; then kill -KILL $pids 2>/dev/null; fi
        if [ "$steps" -ge $((STOP_STEPS + 50)) ]; then
            echo "processes $pids do not end, not even by KILL" >&2
            exit 1
        fi
        steps=$((steps + 1))
        short_pause
    done
}

stop() {
    end 'keeper' # first, or it would start the agent again; it passes TERM on
    end 'agent'
    rm -f "$prefix/run/keeper.pid" "$prefix/run/agent.pid" "$prefix/run/agent.sock"
}

start() {
    [ -z "$(ours 'keeper')" ] || return 0
    [ -f "$prefix/current/agent/keeper.sh" ] || { echo "there is no release in $prefix/current" >&2; exit 1; }
    setsid sh "$prefix/current/agent/keeper.sh" "$prefix" >/dev/null 2>&1 </dev/null &
}

main() {
    prefix=$2
    case $1 in
        stop) stop ;;
        start) start ;;
        restart) stop && start ;;
        stop-all) stop && end 'agent([.][a-z_.]+)?' ;;
        *) echo "unknown verb $1" >&2; exit 3 ;;
    esac
}

main "$@" </dev/null
