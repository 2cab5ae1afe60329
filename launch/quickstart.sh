#!/usr/bin/env bash
# Samples of a base that comes with the package, then a training: effusions for a base that has never seen one.
# Every step knows when it is done already. Run this again to resume.
#
#   launch/quickstart.sh RUN
#   launch/quickstart.sh runs/quickstart
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -ne 1 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
run=$1
config=$(dirname "$0")/../configs/quickstart.py
started=$SECONDS

say() { printf '\n== %s\n' "$*"; }

# draw CHECKPOINT PROMPTS OUT: samples, and a page that says how many show what they were asked for.
draw() {
  jaxcxr sample --checkpoint "$1" --prompts "$2" --out "$3" --steps 20 --guidance 3
  jaxcxr evaluate --config "$config" --real "$run/phantoms" --generated "$3" --out "$3-page" --show-real "${@:4}"
}

say "1/6 a first look: what the base phantom draws"
jaxcxr phantoms --out "$run/phantoms" --patients 500 --size 64
jaxcxr prompts --out "$run/findings.jsonl" --count 24 \
  --ask "large left effusion, large right effusion, severe cardiomegaly, large pneumothorax, mid consolidation, severe edema, pacemaker"
draw phantom "$run/findings.jsonl" "$run/first-look"

say "2/6 prepare: $run/data"
jaxcxr prepare --config "$config" --source "$run/phantoms" --out "$run/data"

say "3/6 before the training: effusions asked of phantom-no-effusion, which has never seen one"
jaxcxr prompts --out "$run/effusions.jsonl" --count 64 --ask "left effusion, right effusion"
draw phantom-no-effusion "$run/effusions.jsonl" "$run/before"

say "4/6 training: $run/tuned"
jaxcxr train --config "$config" --workdir "$run/tuned" "--config.data.path=$run/data"

say "5/6 after the training"
draw "$run/tuned" "$run/effusions.jsonl" "$run/after" --runs "$run/tuned"

say "6/6 export: $run/diffusers"
[ -e "$run/diffusers" ] || jaxcxr convert "$run/tuned" "$run/diffusers" --to diffusers

say "Done in $((SECONDS - started)) s"
cat <<END
  first look   $run/first-look-page/index.html
  before       $run/before-page/index.html
  after        $run/after-page/index.html
  for PyTorch  $run/diffusers (StableDiffusionPipeline.from_pretrained)
  to resume    $run/tuned (config, checkpoints, metrics)
END
