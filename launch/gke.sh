#!/usr/bin/env bash
# Trains on a TPU slice of a GKE cluster with launch/gke.yaml, a JobSet that starts again when pods are taken away:
#
#   IMAGE=REGISTRY/zeroseg BUCKET=my-bucket TOPOLOGY=4x4 launch/gke.sh --config=configs/vitb16.py ...
#
# Set three variables:
#   IMAGE     a container image made with launch/Dockerfile
#   BUCKET    a Cloud Storage bucket, without gs://; the run is in BUCKET/runs/NAME
#   TOPOLOGY  of the slice; 4x4 of TPU v5e is 16 chips on 4 machines
# Others, with defaults: NAME=zeroseg, ACCELERATOR=tpu-v5-lite-podslice, CHIPS=4 (of each machine), and
# SERVICE_ACCOUNT=default, a Kubernetes one that may write to the bucket.
# The arguments go to main.py; the bucket is the folder /mnt/bucket there. See docs/launch.md.
set -euo pipefail
: "${IMAGE:?set it to a container image made with launch/Dockerfile}"
: "${BUCKET:?set it to the name of a Cloud Storage bucket, without gs://}"
: "${TOPOLOGY:?set it to the topology of the slice, such as 4x4}"
[ $# -gt 0 ] || { echo "give the arguments of main.py, such as --config=configs/vitb16.py" >&2; exit 2; }

CHIPS=${CHIPS:-4}
HOSTS=$((${TOPOLOGY//x/*} / CHIPS))
NAME=${NAME:-zeroseg}
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:])[1:-1])' "$@")
export IMAGE BUCKET TOPOLOGY CHIPS HOSTS NAME ARGUMENTS
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} SERVICE_ACCOUNT=${SERVICE_ACCOUNT:-default}
python3 -c 'import os, string, sys; print(string.Template(sys.stdin.read()).substitute(os.environ), end="")' \
  <"$(dirname "$0")/gke.yaml" | kubectl apply -f -
echo "follow it with: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME --prefix --tail=-1"
