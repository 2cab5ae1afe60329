#!/usr/bin/env bash
# A training on a GKE cluster with JobSet, on TPU slices or GPU nodes. It starts again after each preemption and resumes.
#
#   launch/gke/jobset.sh NAME TARGET IMAGE BUCKET ARGUMENTS...     of jaxcxr; BUCKET is at /mnt/jaxcxr
#   launch/gke/jobset.sh cxr v5e:4x4 europe-docker.pkg.dev/me/cxr/jaxcxr my-bucket train \
#     --config configs/roentgen.py:v5e-16 --workdir /mnt/jaxcxr/run --config.data.path=/mnt/jaxcxr/data \
#     --config.model.base=/mnt/jaxcxr/stable-diffusion-v1-4
#
# TARGET is as for `jaxcxr plan`: v4, v5e, v5p or v6e with a topology, or h100 or h200 with a number of GPUs, 8 a node.
# SLICES=2 takes two such TPU slices; SERVICE_ACCOUNT is Kubernetes' name for who may use the bucket; DRY=1 prints only.
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -lt 5 ]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
name=$1 target=$2 image=$3 bucket=$4
shift 4

kind=tpu
case $target in
  v4:*) accelerator=tpu-v4-podslice example=v4:2x2x4 ;;
  v5e:*) accelerator=tpu-v5-lite-podslice example=v5e:4x4 ;;
  v5p:*) accelerator=tpu-v5p-slice example=v5p:2x2x4 ;;
  v6e:*) accelerator=tpu-v6e-slice example=v6e:4x4 ;;
  h100:*) accelerator=nvidia-h100-80gb example=h100:16 kind=gpu ;;
  h200:*) accelerator=nvidia-h200-141gb example=h200:16 kind=gpu ;;
  *) accelerator="" example="v5e:4x4, v5p:2x2x4 or h100:16" ;;
esac
topology=${target#*:} sizes=${example//[!x]/} # an x for each size but the first
if [ -z "$accelerator" ] || ! [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){${#sizes}}$ ]]; then
  echo "$target: wants a target like $example" >&2
  exit 2
fi
flat=" 1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16 " # the slices of v5e and v6e that there are
if [ "$kind:$sizes" = tpu:x ] && [ "${flat/ $topology /}" = "$flat" ]; then
  echo "$target: no such slice; there are$flat" >&2
  exit 2
fi
if [ "$kind" = gpu ] && [ "${SLICES:-1}" != 1 ]; then
  echo "$target: GPUs have no slices; leave out SLICES and give the number of all GPUs, as in $example" >&2
  exit 2
fi
chips=$((${topology//x/*})) each=4
if [ "$kind" = gpu ]; then each=8; fi
if ((chips < each)); then each=$chips; fi # a host alone
if ((chips % each)); then
  echo "$target: $chips chips do not fill hosts of $each" >&2
  exit 2
fi

arguments=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
manifest=$(<"$(dirname "$0")/$kind.yaml")
fill() { manifest=${manifest//"{{$1}}"/"$2"}; }
fill NAME "$name"
fill IMAGE "$image"
fill BUCKET "$bucket"
fill ACCELERATOR "$accelerator"
fill TOPOLOGY "$topology"
fill SLICES "${SLICES:-1}"
fill HOSTS "$((chips / each))"
fill CHIPS "$each"
fill SERVICE_ACCOUNT "${SERVICE_ACCOUNT:-default}"
fill ARGUMENTS "$arguments"
if [ "${DRY:-0}" = 1 ]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
