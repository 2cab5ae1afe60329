#!/usr/bin/env bash
# A training on a Cloud TPU slice, of one host or many. Rents it, sets it up and trains on all hosts; when the slice is
# preempted, rents it again and resumes, until the training is done; then gives it back.
#
#   launch/tpu_vm.sh NAME ZONE TYPE BUCKET ARGUMENTS...     of jaxcxr; BUCKET is at /mnt/jaxcxr
#   launch/tpu_vm.sh cxr europe-west4-b v5litepod-16 my-bucket train --config configs/roentgen.py:v5e-16 \
#     --workdir /mnt/jaxcxr/run --config.data.path=/mnt/jaxcxr/data \
#     --config.model.base=/mnt/jaxcxr/stable-diffusion-v1-4
#
# SPOT=0 rents at full price, without preemption; KEEP=1 does not give the slice back; RENT holds further options of
# `gcloud compute tpus queued-resources create`. Of what is committed here a copy goes to the slice.
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -lt 5 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
name=$1 zone=$2 type=$3 bucket=$4
shift 4
case $type in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v[234]-*) runtime=tpu-ubuntu2204-base ;;
  *) echo "$type: wants a type like v4-8, v5litepod-16, v5p-64 or v6e-256" >&2 && exit 2 ;;
esac
poll=${POLL:-60} # seconds
cd "$(dirname "$0")/.."

tpus() { gcloud compute tpus "$@" "--zone=$zone"; }
on_all() { tpus tpu-vm ssh "$name" --worker=all --ssh-flag=-tt "--command=$1"; } # -tt: without us, they get SIGHUP
state() {
  echo "$(tpus queued-resources describe "$name" '--format=value(state.state)' 2>/dev/null || true)/$(
    tpus tpu-vm describe "$name" '--format=value(state)' 2>/dev/null || true
  )"
}

rent() {
  local options=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  if [ "${SPOT:-1}" = 1 ]; then options+=(--spot); fi
  while :; do
    case $(state) in
      ACTIVE/READY) return ;;
      SUSPENDED/* | FAILED/* | ACTIVE/PREEMPTED | ACTIVE/TERMINATED)
        tpus queued-resources delete "$name" --force --quiet
        ;;
      /*)
        # shellcheck disable=SC2086  # RENT is a list of options
        tpus queued-resources create "$name" "${options[@]}" ${RENT:-}
        ;;
      *) sleep "$poll" ;; # in the queue, or on its way in or out
    esac
  done
}

set_up() {
  local archive
  archive=$(mktemp --suffix=.tar.gz) &&
    git archive --format=tar.gz "--output=$archive" HEAD &&
    tpus tpu-vm scp "$archive" "$name:jaxcxr.tar.gz" --worker=all &&
    rm "$archive" &&
    on_all "mkdir -p jaxcxr && tar -xzf jaxcxr.tar.gz -C jaxcxr && jaxcxr/launch/tpu_setup.sh $(printf %q "$bucket")"
}

command="cd jaxcxr && PATH=\$PWD/.venv/bin:\$PATH launch/worker.sh tpu jaxcxr$(printf ' %q' "$@")"
give_back="gcloud compute tpus queued-resources delete $name --zone=$zone --force"
trap 'echo "$name is still rented; to give it back: $give_back" >&2' EXIT
failures=0
while :; do
  rent
  began=$SECONDS code=0
  { set_up && on_all "$command"; } || code=$?
  if [ "$code" = 0 ]; then break; fi
  if [ "$code" = 2 ]; then exit 2; fi # a mistake in the arguments, told by jaxcxr
  sleep "$poll"                       # a preemption is not known at once
  if [ "$(state)" = ACTIVE/READY ]; then
    if ((SECONDS - began > 1800)); then failures=0; fi
    failures=$((failures + 1))
    if [ "$failures" = 3 ]; then
      echo "$0: failed three times in a row on a slice that is there, the last time with exit code $code" >&2
      exit "$code"
    fi
  fi
  echo "$0: ended with exit code $code; resumes" >&2
done
trap - EXIT
if [ "${KEEP:-0}" = 1 ]; then
  echo "done; $name is still rented; to give it back: $give_back"
else
  tpus queued-resources delete "$name" --force --quiet
fi
