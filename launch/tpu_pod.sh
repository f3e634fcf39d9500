#!/usr/bin/env bash
# Trains on a Cloud TPU slice, and goes on in a new one when it is taken away. Run it from the repository root:
#
#   ZONE=us-west4-a TPU_TYPE=v5litepod-16 BUCKET=my-bucket launch/tpu_pod.sh --config=configs/vitb16.py ...
#
# Set three variables:
#   ZONE      where the TPU is asked for
#   TPU_TYPE  its accelerator type; v5litepod-16 is 16 chips on 4 machines
#   BUCKET    a Cloud Storage bucket, without gs://; the run is in BUCKET/runs/NAME
# Others, with defaults: NAME=zeroseg, SPOT=yes (anything else: on demand), ATTEMPTS=20.
# The arguments go to main.py; the bucket is the folder /mnt/bucket there. See docs/launch.md.
set -euo pipefail
: "${ZONE:?set it to the zone of the TPU, such as us-west4-a}"
: "${TPU_TYPE:?set it to an accelerator type, such as v5litepod-16}"
: "${BUCKET:?set it to the name of a Cloud Storage bucket, without gs://}"
[ $# -gt 0 ] || { echo "give the arguments of main.py, such as --config=configs/vitb16.py" >&2; exit 2; }
NAME=${NAME:-zeroseg}

case "$TPU_TYPE" in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) runtime=tpu-ubuntu2204-base ;;
esac

state() {
  gcloud compute tpus queued-resources list --zone="$ZONE" --filter="name~/$NAME\$" --format="value(state.state)"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

create() {
  local spot=()
  [ "${SPOT:-yes}" != yes ] || spot=(--spot)
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TPU_TYPE" --runtime-version="$runtime" ${spot[@]+"${spot[@]}"}
  until [ "$(state)" = ACTIVE ]; do
    case "$(state)" in FAILED | SUSPENDED) echo "the TPU could not be had: $(state)" >&2; delete; return 1 ;; esac
    sleep "${POLL_SECONDS:-30}"
  done
}

train() {
  local archive command
  archive=$(mktemp -d)/zeroseg.tar.gz
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:zeroseg.tar.gz" --zone="$ZONE" --worker=all
  command="mkdir -p zeroseg && tar -xzf zeroseg.tar.gz -C zeroseg && cd zeroseg && launch/tpu_worker.sh $BUCKET"
  command+=$(printf ' %q' "--workdir=/mnt/bucket/runs/$NAME" "$@")
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$command"
}

for ((attempt = 1; attempt <= ${ATTEMPTS:-20}; attempt++)); do
  [ "$(state)" = ACTIVE ] || create || continue
  status=0
  train "$@" || status=$?
  if [ "$status" -eq 0 ]; then
    delete
    exit 0
  fi
  if [ "$(state)" = ACTIVE ] && [ "$status" -ne 75 ]; then
    echo "the run failed; the TPU $NAME is still there, for a look and another start, and costs money" >&2
    exit "$status"
  fi
  echo "the TPU was taken away; asking for another ($attempt)" >&2
  [ "$(state)" = ACTIVE ] || delete
done
echo "gave up after ${ATTEMPTS:-20} attempts" >&2
exit 1
