#!/bin/sh
# Keeps the agent alive where no systemd user manager does. usage: keeper.sh PREFIX
# TERM ends the agent and then the keeper; engine ranks and gateways are left alone.
prefix=$1
exec >>"$prefix/var/log/console.log" 2>&1 </dev/null
echo $$ >"$prefix/run/keeper.pid"
child=
leave() {
    trap '' TERM INT
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null
    wait
    [ "$(cat "$prefix/run/keeper.pid" 2>/dev/null)" != $$ ] || rm -f "$prefix/run/keeper.pid"
    exit 0
}
trap leave TERM INT
trap '' HUP

pause_s=1
while [ -e "$prefix/current" ]; do
    began=$(date +%s)
    sh "$prefix/current/agent/launch.sh" "$prefix" &
    child=$!
    wait "$child"
    echo "keeper: the agent ended with status $?; started again in $pause_s s"
    # An agent that lived a minute was well: begin again with a short pause.
    if [ $(($(date +%s) - began)) -ge 60 ]; then pause_s=1; fi
    sleep "$pause_s" &
    child=$!
    wait "$child"
    if [ "$pause_s" -lt 30 ]; then pause_s=$((pause_s * 2)); fi
done
rm -f "$prefix/run/keeper.pid"
