#!/usr/bin/env bash
# The same as launch/gke/jobset.sh on a cluster that xpk made, with its queue; TYPE is v5litepod-16, v5p-64, h100-80gb-8 …
#
#   launch/gke/xpk.sh CLUSTER NAME TYPE IMAGE STORAGE ARGUMENTS...     of jaxcxr; STORAGE is mounted at /mnt/jaxcxr
#   launch/gke/xpk.sh my-cluster cxr v5litepod-16 europe-docker.pkg.dev/me/cxr/jaxcxr my-storage train \
#     --config configs/roentgen.py:v5e-16 --workdir /mnt/jaxcxr/run --config.data.path=/mnt/jaxcxr/data \
#     --config.model.base=/mnt/jaxcxr/stable-diffusion-v1-4
#
# XPK holds further options of `xpk workload create`: XPK='--spot --num-slices=2', or --dry-run to see what it would do.
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -lt 6 ]; then
  sed -n '2,9s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
cluster=$1 name=$2 type=$3 image=$4 storage=$5
shift 5
kind=tpu
if [[ $type != v[0-9]* ]]; then kind=gpu; fi

# xpk starts again after exit codes of 127 and more: what an interrupted training ends with, and one whose neighbour died.
# shellcheck disable=SC2086  # XPK is a list of options
xpk workload create "--cluster=$cluster" "--workload=$name" "--device-type=$type" "--docker-image=$image" \
  "--storage=$storage" --max-restarts=100 --termination-grace-period-seconds=120 ${XPK:-} \
  "--command=launch/worker.sh $kind jaxcxr$(printf ' %q' "$@")"
