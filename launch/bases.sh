#!/usr/bin/env bash
# Trains bases of drawn radiographs: one autoencoder, then the base that you name, or all of them.
# Every step knows when it is done already. Run this again to resume.
#
#   launch/bases.sh RUN [phantom-unnamed | phantom | phantom-no-effusion]
#   launch/bases.sh runs/bases
set -euo pipefail

if [ "${1:-}" = --help ] || [ $# -lt 1 ] || [ $# -gt 2 ]; then
  sed -n '2,6s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
run=$1 wanted=${2:-all}
case $wanted in
  all | phantom-unnamed | phantom | phantom-no-effusion) ;;
  *) echo "launch/bases.sh: $wanted is no base; choose phantom-unnamed, phantom or phantom-no-effusion" >&2 && exit 2 ;;
esac
config=$(dirname "$0")/../configs/bases.py

say() { printf '\n== %s\n' "$*"; }

# pictures FOLDER SEED [OPTION …]: drawn patients with their reports.
pictures() {
  jaxcxr phantoms --out "$run/$1" --patients 6000 --size 64 --seed "$2" "${@:3}"
}

# base NAME PHANTOMS [OPTION …]: from drawn patients to a diffusers folder.
base() {
  local name=$1 data=$run/data-$1 cache=$run/cache-$1 card=$run/bases/$1/README.md said
  say "$name: prepare, encode, train, export"
  jaxcxr prepare --config "$config:$name" --source "$run/$2" --out "$data" "${@:3}"
  jaxcxr cache --config "$config:$name" --out "$cache" "--config.data.path=$data" \
    "--config.model.base=$run/autoencoder"
  jaxcxr train --config "$config:$name" --workdir "$run/$name" "--config.data.path=$data" \
    "--config.data.cache=$cache" "--config.model.base=$run/autoencoder"
  [ -e "$run/bases/$name" ] ||
    jaxcxr convert "$run/$name" "$run/bases/$name" --to diffusers --dtype float16 --license apache-2.0
  if [ -e "$card" ]; then
    said="Data: drawn radiographs alone, of no patient. Trained by \`launch/bases.sh RUN $name\`."
    sed "s|^Data: state here.*|$said|" "$card" >"$run/card.md" && mv "$run/card.md" "$card"
  fi
}

say "phantoms with every finding, and the autoencoder that all bases share"
pictures phantoms 1
jaxcxr prepare --config "$config:phantom" --source "$run/phantoms" --out "$run/data-phantom"
jaxcxr train --config "$config:autoencoder" --workdir "$run/autoencoder" "--config.data.path=$run/data-phantom"

if [ "$wanted" = phantom ] || [ "$wanted" = all ]; then
  base phantom phantoms
fi
if [ "$wanted" = phantom-unnamed ] || [ "$wanted" = all ]; then
  # Its own captions have few words; this tokenizer knows those of the reports that it may be tuned on.
  base phantom-unnamed phantoms "--config.data.tokenizer=$run/data-phantom/tokenizer"
fi
if [ "$wanted" = phantom-no-effusion ] || [ "$wanted" = all ]; then
  pictures phantoms-no-effusion 2 --findings cardiomegaly,pneumothorax,consolidation,nodule,edema,device \
    --unmentioned effusion
  base phantom-no-effusion phantoms-no-effusion
fi
