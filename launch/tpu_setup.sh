#!/usr/bin/env bash
# Sets up one host of a TPU slice; launch/tpu_vm.sh runs it on all of them. Safe to run again.
#
#   launch/tpu_setup.sh BUCKET     mounted at /mnt/jaxcxr
#   launch/tpu_setup.sh my-bucket
set -euo pipefail

if [ $# -ne 1 ] || [ "$1" = --help ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  [ "${1:-}" = --help ] && exit 0 || exit 2
fi
cd "$(dirname "$0")/.."

# Starting and stopping the TPU takes minutes longer without (v5e and newer; JAX warns of it).
echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null

if ! mountpoint -q /mnt/jaxcxr; then
  if ! command -v gcsfuse >/dev/null; then
    key=/usr/share/keyrings/cloud.google.asc packages=https://packages.cloud.google.com/apt
    curl -fsS "$packages/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $packages gcsfuse-$(lsb_release -cs) main" |
      sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    sudo apt-get update -qq
    sudo apt-get install -yqq gcsfuse
  fi
  sudo mkdir -p /mnt/jaxcxr
  sudo chown "$(id -u)" /mnt/jaxcxr
  gcsfuse --implicit-dirs "$1" /mnt/jaxcxr
fi

# The images' own Python is older than JAX wants.
command -v ~/.local/bin/uv >/dev/null || curl -fsSL https://astral.sh/uv/install.sh | sh
~/.local/bin/uv venv --quiet --allow-existing --python 3.12 .venv
~/.local/bin/uv pip install --quiet --python .venv -e '.[data,tpu]'
