#!/usr/bin/env bash
# Several processes on this machine, joined into one run. When one fails the others are ended, and its exit code is this
# script's; SIGTERM and Ctrl-C are passed on to all.
#
#   launch/local.sh PROCESSES DEVICES cpu|gpu COMMAND...     DEVICES of each process
#   launch/local.sh 2 4 gpu jaxcxr train --config configs/roentgen.py:h100-8 --workdir runs/roentgen
#   launch/local.sh 2 2 cpu jaxcxr train --config configs/phantom.py:autoencoder --workdir runs/try
set -euo pipefail

if ! [[ $# -ge 4 && ${1:-} =~ ^[1-9][0-9]*$ && ${2:-} =~ ^[1-9][0-9]*$ && ${3:-} =~ ^(cpu|gpu)$ ]]; then
  sed -n '2,7s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
processes=$1 devices=$2 kind=$3
shift 3

port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
export JAXCXR_COORDINATOR=127.0.0.1:$port JAXCXR_NUM_PROCESSES=$processes
export JAX_COORDINATOR_BIND_ADDRESS=$JAXCXR_COORDINATOR # JAX would listen on every interface
# shellcheck source=launch/flags.sh
source "$(dirname "$0")/flags.sh" "$kind"
if [ "$kind" = cpu ]; then
  export JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi

set -m # a process group each: Ctrl-C reaches this script alone, and a process is ended with its children
pids=()
for ((number = 0; number < processes; number++)); do
  export JAXCXR_PROCESS_ID=$number
  if [ "$kind" = gpu ]; then
    CUDA_VISIBLE_DEVICES=$(seq -s, $((number * devices)) $(((number + 1) * devices - 1)))
    export CUDA_VISIBLE_DEVICES
  fi
  "$@" </dev/null &
  pids+=($!)
done

all() { for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done; }
stopped=0
trap 'stopped=143; all TERM' TERM INT HUP

code=0
while :; do
  status=0
  wait -n -p ended || status=$?
  if [ -z "${ended:-}" ]; then
    if [ "$status" = 127 ]; then break; fi # all have ended
    continue                               # a trapped signal came first
  fi
  if [ "$status" = 0 ] || [ "$code" != 0 ]; then continue; fi
  code=$status
  if [ "$stopped" = 0 ]; then
    echo "$0: one process ended with exit code $status; the others are ended" >&2
    all TERM
    # Those that wait for the one that is gone cannot hear it.
    (sleep "${GRACE:-10}" && all KILL) >/dev/null 2>&1 &
    killer=$!
    disown
  fi
done
if [ -n "${killer:-}" ]; then kill -- "-$killer" 2>/dev/null || true; fi
if [ "$code" = 0 ]; then code=$stopped; fi
exit "$code"
