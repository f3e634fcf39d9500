#!/usr/bin/env bash
# Trains on a Cloud TPU slice, and goes on in a new one when it is taken away. Run it from the repository root:
#
#   ZONE=us-west4-a TPU_TYPE=v5litepod-16 BUCKET=my-bucket launch/tpu_pod.sh --config=configs/vitb16.py ...
#
# Set three variables:
#   ZONE      where the TPU is requested
#   TPU_TYPE  its accelerator type; v5litepod-16 is 16 chips on 4 machines
#   BUCKET    a Cloud Storage bucket, without gs://; the run is in BUCKET/runs/NAME
# Others, with defaults: NAME=zeroseg, SPOT=yes (anything else: on demand), ATTEMPTS=20, and WAIT_HOURS=24, the longest
# wait for a TPU. The arguments go to main.py; the bucket is the folder /mnt/bucket there. See docs/launch.md.
set -euo pipefail
: "${ZONE:?set it to the zone of the TPU, such as us-west4-a}"
: "${TPU_TYPE:?set it to an accelerator type, such as v5litepod-16}"
: "${BUCKET:?set it to the name of a Cloud Storage bucket, without gs://}"
[ $# -gt 0 ] || { echo "give the arguments of main.py, such as --config=configs/vitb16.py" >&2; exit 2; }
NAME=${NAME:-zeroseg}
ATTEMPTS=${ATTEMPTS:-20}
WAIT_HOURS=${WAIT_HOURS:-24}
PREEMPTED=75     # exit status of a run that was told to stop, and is saved
DISCONNECTED=255 # exit status of ssh when the connection breaks

case "$TPU_TYPE" in
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  v2-* | v3-* | v4-*) runtime=tpu-ubuntu2204-base ;;
  *) echo "TPU_TYPE=$TPU_TYPE is not known; expected v5litepod-N, v5p-N, v6e-N or v4-N (TPU7x: launch/gke.sh)" >&2; exit 2 ;;
esac

state() {
  gcloud compute tpus queued-resources list --zone="$ZONE" --filter="name~/$NAME\$" --format="value(state.state)"
}

delete() {
  gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet
}

# Ends the script where Google refuses the request; Google's words are on stderr then.
request() {
  local spot=()
  [ "${SPOT:-yes}" != yes ] || spot=(--spot)
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TPU_TYPE" --runtime-version="$runtime" ${spot[@]+"${spot[@]}"} || {
    echo "the request for a $TPU_TYPE in $ZONE was refused; the reason is above" >&2
    exit 1
  }
}

explain() {
  gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format="value(state.failedData.error.message)"
}

# Returns when the TPU is there, 1 when it was taken away meanwhile. A request from an earlier start is waited for.
obtain() {
  local now deadline=$((SECONDS + WAIT_HOURS * 3600))
  now=$(state)
  case "$now" in
    FAILED | SUSPENDED) delete; now= ;;
  esac
  [ -n "$now" ] || request
  while now=$(state); [ "$now" != ACTIVE ]; do
    case "$now" in
      FAILED)
        echo "the TPU cannot be had: $(explain)" >&2
        delete
        exit 1
        ;;
      SUSPENDED) return 1 ;;
    esac
    if [ "$SECONDS" -ge "$deadline" ]; then
      echo "no TPU came within $WAIT_HOURS hours (the request is $now); it is taken back; see WAIT_HOURS" >&2
      delete
      exit 1
    fi
    sleep "${POLL_SECONDS:-30}"
  done
}

copy() {
  local archive
  archive=$(mktemp -d)/zeroseg.tar.gz
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:zeroseg.tar.gz" --zone="$ZONE" --worker=all
}

# Starts the run number $1 on all machines, or follows it where it has been started, and returns its exit status.
train() {
  local command
  command="mkdir -p zeroseg && tar -xzf zeroseg.tar.gz -C zeroseg && cd zeroseg && launch/tpu_worker.sh $1 $BUCKET"
  shift
  command+=$(printf ' %q' "--workdir=/mnt/bucket/runs/$NAME" "$@")
  gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker=all --command="$command"
}

# Copies the repository to a new TPU, and starts or follows the run.
start() {
  [ "$copied" = yes ] || copy || return
  copied=yes
  train "$@"
}

for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
  obtain || continue
  run=$(date +%s)-$attempt
  status=0 copied=no
  start "$run" "$@" || status=$?
  while [ "$status" -eq "$DISCONNECTED" ] && [ "$(state)" = ACTIVE ]; do
    echo "the connection broke; the run goes on, and is followed again" >&2
    sleep "${POLL_SECONDS:-30}"
    status=0
    start "$run" "$@" || status=$?
  done
  if [ "$status" -eq 0 ]; then
    delete
    exit 0
  fi
  if [ "$(state)" = ACTIVE ] && [ "$status" -ne "$PREEMPTED" ]; then
    echo "the run failed; the TPU $NAME is still there, for a look and another start, and costs money" >&2
    exit "$status"
  fi
  echo "the TPU was taken away; asking for another ($attempt)" >&2
  [ "$(state)" = ACTIVE ] || delete
done
echo "gave up after $ATTEMPTS attempts" >&2
exit 1
