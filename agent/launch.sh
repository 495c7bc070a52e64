#!/bin/sh
# Becomes the agent of the current release. usage: launch.sh PREFIX
# The release's own directory is put on the path, not the link: what is running must not change under its feet.
prefix=$1
release=$(readlink -f "$prefix/current") || exit 1
python=$(cat "$release/interpreter") || exit 1
PYTHONPATH=$release
export PYTHONPATH
cd "$prefix" || exit 1
exec "$python" -m agent --prefix "$prefix"
