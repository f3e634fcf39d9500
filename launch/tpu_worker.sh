#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each machine of the slice: tpu_worker.sh BUCKET ARGUMENTS_OF_MAIN...
# Installs the package, mounts the bucket as /mnt/bucket and trains; a second start finds both in place.
set -euo pipefail
bucket=${1:?give the bucket and the arguments of main.py}
shift

if ! command -v gcsfuse >/dev/null; then
  key=/usr/share/keyrings/cloud.google.asc
  curl --fail --silent https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee "$key" >/dev/null
  echo "deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-$(lsb_release -cs) main" |
    sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
  sudo apt-get update -qq
  sudo apt-get install -qq -y gcsfuse
fi
if ! mountpoint -q /mnt/bucket; then
  sudo mkdir -p /mnt/bucket
  sudo chown "$USER" /mnt/bucket
  # a checkpoint is written under another name first
  gcsfuse --implicit-dirs --rename-dir-limit=200000 "$bucket" /mnt/bucket
fi

if [ ! -x .venv/bin/python ]; then
  command -v ~/.local/bin/uv >/dev/null || curl --fail --silent --location https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv --quiet --python=3.12 .venv
  ~/.local/bin/uv pip install --quiet --python=.venv/bin/python '.[tpu]'
fi
export JAX_COMPILATION_CACHE_DIR=/mnt/bucket/jax_cache # a restart does not compile again
exec .venv/bin/python main.py --distributed --preempted_status=75 "$@"
