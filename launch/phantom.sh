#!/usr/bin/env bash
# All of it on phantoms: draw, prepare, train the autoencoder, train the diffusion, sample, export, evaluate.
# Every step knows when it is done already, so running this again resumes where it stopped.
#
#   launch/phantom.sh CONFIG RUN PATIENTS SAMPLES
#   launch/phantom.sh configs/phantom.py runs/phantom 2500 200
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -ne 4 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
config=$1 run=$2 patients=$3 samples=$4
started=$SECONDS

say() { printf '\n== %s\n' "$*"; }

say "1/7 phantoms: $run/phantoms"
jaxcxr phantoms --out "$run/phantoms" --patients "$patients" --size 64

say "2/7 prepare: $run/data"
jaxcxr prepare --config "$config" --source "$run/phantoms" --out "$run/data"

say "3/7 autoencoder: $run/autoencoder"
jaxcxr train --config "$config:autoencoder" --workdir "$run/autoencoder" "--config.data.path=$run/data"

say "4/7 diffusion: $run/diffusion"
jaxcxr train --config "$config:diffusion" --workdir "$run/diffusion" "--config.data.path=$run/data" \
  "--config.model.base=$run/autoencoder"

say "5/7 samples: $run/samples"
jaxcxr prompts --out "$run/prompts.jsonl" --count "$samples"
jaxcxr sample --checkpoint "$run/diffusion" --prompts "$run/prompts.jsonl" --out "$run/samples" --steps 25 --guidance 3

say "6/7 export: $run/diffusers"
[ -e "$run/diffusers" ] || jaxcxr convert "$run/diffusion" "$run/diffusers" --to diffusers

say "7/7 page: $run/page"
jaxcxr evaluate --config "$config" --real "$run/phantoms" --generated "$run/samples" --out "$run/page" \
  --runs "$run/autoencoder" "$run/diffusion" --show-real

say "Done in $((SECONDS - started)) s"
cat <<END
  samples      $run/samples (PNG, with manifest.jsonl)
  for PyTorch  $run/diffusers (StableDiffusionPipeline.from_pretrained)
  to resume    $run/diffusion (config, checkpoints, metrics)
  to look at   $run/page/index.html
END
