#!/usr/bin/env bash
# What a host of a slice or cluster runs: COMMAND, with the flags for its hardware. Told to stop (SIGTERM, or SIGHUP of a
# lost connection), it passes SIGTERM on, waits and exits with 143: a training that saved and stopped is not done.
#
#   launch/worker.sh tpu|gpu|cpu COMMAND...
#   launch/worker.sh tpu jaxcxr train --config configs/roentgen.py:v5e-16 --workdir /mnt/jaxcxr/run
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -lt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
# shellcheck source=launch/flags.sh
source "$(dirname "$0")/flags.sh" "$1"
shift

stopped=0
set -m # the command has a process group of its own, and gets each signal once
"$@" </dev/null &
child=$!
trap 'stopped=143; kill -TERM -- "-$child" 2>/dev/null || true' TERM INT HUP
while :; do
  code=0
  wait "$child" || code=$?
  kill -0 "$child" 2>/dev/null || break # else it was the signal that ended the wait
done
if [ "$code" = 0 ]; then code=$stopped; fi
exit "$code"
