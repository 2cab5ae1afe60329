#!/usr/bin/env bash
# Trains bases of drawn radiographs: one autoencoder, then the base that you name, or all of them. phantom begins with
# phantom-no-effusion. Every step knows when it is done already. Run this again to resume.
#
#   launch/bases.sh RUN [phantom-no-effusion | phantom | phantom-unnamed]
#   launch/bases.sh runs/bases
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
run=$1 wanted=${2:-all}
case $wanted in
  all | phantom-no-effusion | phantom | phantom-unnamed) ;;
  *) echo "launch/bases.sh: $wanted is no base; choose phantom-no-effusion, phantom or phantom-unnamed" >&2 && exit 2 ;;
esac
config=$(dirname "$0")/../configs/bases.py

say() { printf '\n== %s\n' "$*"; }

# pictures FOLDER SEED [OPTION …]: drawn patients with their reports. What is small and learnt last, tubes, lines and
# nodules, is more frequent here than `jaxcxr phantoms` has it.
prevalence="left effusion=0.12,right effusion=0.12,bilateral effusion=0.1,cardiomegaly=0.25,pneumothorax=0.25"
prevalence="$prevalence,consolidation=0.25,nodule=0.3,edema=0.15,device=0.8"
pictures() {
  jaxcxr phantoms --out "$run/$1" --patients 8000 --size 64 --seed "$2" --prevalence "$prevalence" "${@:3}"
}

# learn STAGE DATA PHANTOMS FROM: from drawn patients, and the checkpoint to begin with, to a workdir.
learn() {
  local data=$run/data-$2 cache=$run/cache-$2 from="--config.model.base=$run/$4"
  local config=$config:$1 tokenizer="--config.data.tokenizer=$run/data/tokenizer"
  say "$1: prepare, encode, train"
  jaxcxr prepare --config "$config" --source "$run/$3" --out "$data" "$tokenizer"
  jaxcxr cache --config "$config" --out "$cache" "--config.data.path=$data" "$tokenizer" "$from"
  jaxcxr train --config "$config" --workdir "$run/$1" "--config.data.path=$data" "--config.data.cache=$cache" \
    "$tokenizer" "$from"
}

# publish NAME: the workdir as a diffusers folder.
publish() {
  local card=$run/bases/$1/README.md said text
  [ -e "$run/bases/$1" ] ||
    jaxcxr convert "$run/$1" "$run/bases/$1" --to diffusers --dtype float16 --license apache-2.0
  if [ -e "$card" ]; then
    said="Data: drawn radiographs alone, of no patient. Trained by \`launch/bases.sh RUN $1\`."
    # Bash replaces a quoted text as it stands, whatever is in it; sed would take the path for a pattern.
    sed "s|^Data: state here.*|$said|" "$card" >"$run/card.md"
    text=$(<"$run/card.md")
    printf '%s\n' "${text//"$run/"/RUN/}" >"$run/card.md" && mv "$run/card.md" "$card"
  fi
}

say "phantoms with every finding, and the autoencoder and tokenizer that all bases share"
pictures phantoms 1
jaxcxr prepare --config "$config:autoencoder" --source "$run/phantoms" --out "$run/data"
jaxcxr train --config "$config:autoencoder" --workdir "$run/autoencoder" "--config.data.path=$run/data"
jaxcxr train --config "$config:details" --workdir "$run/details" "--config.data.path=$run/data" \
  "--config.model.base=$run/autoencoder"
[ -e "$run/white" ] || jaxcxr convert "$run/details" "$run/white" --to diffusers --whiten "$run/data:train"

if [ "$wanted" != phantom-unnamed ]; then
  pictures phantoms-no-effusion 2 --findings cardiomegaly,pneumothorax,consolidation,nodule,edema,device \
    --unmentioned effusion
  learn phantom-no-effusion phantom-no-effusion phantoms-no-effusion white
  publish phantom-no-effusion
fi
if [ "$wanted" = phantom ] || [ "$wanted" = all ]; then
  learn findings phantom phantoms phantom-no-effusion
  learn further phantom phantoms findings
  learn phantom phantom phantoms further
  publish phantom
fi
if [ "$wanted" = phantom-unnamed ] || [ "$wanted" = all ]; then
  learn phantom-unnamed phantom-unnamed phantoms white
  publish phantom-unnamed
fi
