#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster with launch/gke.yaml, a JobSet that starts again when pods are taken away:
#
#   IMAGE=REGISTRY/zeroseg BUCKET=my-bucket TOPOLOGY=4x4 launch/gke.sh --config=configs/vitb16.py ...
#
# Set three variables:
#   IMAGE     a container image made with launch/Dockerfile
#   BUCKET    a Cloud Storage bucket, without gs://; the run is in BUCKET/runs/NAME
#   TOPOLOGY  of the slice; 4x4 of TPU v5e is 16 chips on 4 machines
# Others, with defaults:
#   NAME=zeroseg
#   ACCELERATOR=tpu-v5-lite-podslice   or tpu-v4-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu7x
#   CHIPS=4                            of each machine
#   SPOT=no                            yes: on Spot nodes, which give a run 15 seconds to save
#   DATA_BUCKET=BUCKET                 a bucket with the images, if it is another
#   SHM=64Gi                           memory that the input's workers may take in /dev/shm, on each machine
#   SERVICE_ACCOUNT=default            a Kubernetes one that may write to the bucket
# The arguments go to main.py. The bucket is the folder /mnt/bucket there, and the bucket with the images /mnt/data,
# which is read-only and cached. See docs/launch.md.
set -euo pipefail
: "${IMAGE:?set it to a container image made with launch/Dockerfile}"
: "${BUCKET:?set it to the name of a Cloud Storage bucket, without gs://}"
: "${TOPOLOGY:?set it to the topology of the slice, such as 4x4}"
[ $# -gt 0 ] || { echo "give the arguments of main.py, such as --config=configs/vitb16.py" >&2; exit 2; }

CHIPS=${CHIPS:-4}
HOSTS=$((${TOPOLOGY//x/*} / CHIPS))
NAME=${NAME:-zeroseg}
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:])[1:-1])' "$@")
SPOT_SELECTOR=
if [ "${SPOT:-no}" = yes ]; then
  # shellcheck disable=SC2089 # the quotes belong to a line of YAML
  SPOT_SELECTOR="cloud.google.com/gke-spot: 'true'"
  echo "a Spot node gives the run 15 seconds to save, which may be too few; set --config.checkpoint_every low" >&2
fi
# shellcheck disable=SC2090
export SPOT_SELECTOR DATA_BUCKET=${DATA_BUCKET:-$BUCKET} SHM=${SHM:-64Gi}
export IMAGE BUCKET TOPOLOGY CHIPS HOSTS NAME ARGUMENTS
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
python3 -c 'import os, string, sys; print(string.Template(sys.stdin.read()).substitute(os.environ), end="")' \
  <"$(dirname "$0")/gke.yaml" | kubectl apply -f -
echo "follow it with: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME --prefix --tail=-1"
