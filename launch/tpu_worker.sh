#!/usr/bin/env bash
# What launch/tpu_pod.sh runs on each machine of the slice: tpu_worker.sh RUN BUCKET ARGUMENTS_OF_MAIN...
#
# Starts a run in the background, or finds the one of that name, and prints its log until it ends. So a broken
# connection does not end the run. The exit status is that of the run.
set -euo pipefail
run=${1:?give the name of the run, the bucket and the arguments of main.py}
bucket=${2:?give the name of the run, the bucket and the arguments of main.py}
shift 2

prepare() {
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
}

# Writes the exit status last, so that whoever follows knows that the run has ended.
run_to_the_end() {
  local status=0
  (
    set -e
    prepare
    export JAX_COMPILATION_CACHE_DIR=/mnt/bucket/jax_cache # a restart does not compile again
    exec .venv/bin/python main.py --distributed --preempted_status=75 "$@"
  ) || status=$?
  echo "$status" >"run-$run.status"
}

if [ ! -e "run-$run.log" ]; then
  touch "run-$run.log"
  trap '' HUP # the end of the connection
  run_to_the_end "$@" </dev/null >"run-$run.log" 2>&1 &
  echo $! >"run-$run.pid"
fi
tail --pid="$(cat "run-$run.pid")" --lines=+1 --follow "run-$run.log"
exit "$(cat "run-$run.status")"
