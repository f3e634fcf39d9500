"""The launch files: linted, run with tools that only write down how they were called, and checked against schemas."""

import json
import os
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from zeroseg_jax.processes import DIVERGED

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
VARIABLES = {
    "tpu_pod.sh": {"ZONE": "us-west4-a", "TPU_TYPE": "v5litepod-16", "BUCKET": "my-bucket"},
    "slurm.sh": {"VENV": "/venv", "WORKDIR": "/shared/run", "DATA": "/data"},
    "gke.sh": {"IMAGE": "registry/zeroseg", "BUCKET": "my-bucket", "TOPOLOGY": "4x4"},
}
ARGUMENTS = ["--config=configs/vitb16.py", "--config.eval.dataset=a b'c"]


@pytest.fixture
def tools(tmp_path) -> Path:
    """A folder of stand-ins that append their arguments, and what they read, to `calls`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gcloud", "kubectl", "srun", "scontrol"):
        (folder / name).write_text(
            f"#!/usr/bin/env bash\nprintf '%s|' {name} \"$@\" >>{tmp_path}/calls\necho >>{tmp_path}/calls\n"
            f"[ {name} != kubectl ] || cat >{tmp_path}/applied\n. {tmp_path}/behaviour\n"
        )
        (folder / name).chmod(0o755)
    (tmp_path / "behaviour").write_text("")
    return tmp_path


def run(script: str, tools: Path, behaviour: str = "", **variables: str) -> subprocess.CompletedProcess:
    (tools / "behaviour").write_text(behaviour)
    path = f"{tools / 'bin'}:{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tools), "POLL_SECONDS": "0", "SLURM_JOB_ID": "7"} | variables
    command = [LAUNCH / script, *ARGUMENTS]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=60)


def calls(tools: Path) -> list[list[str]]:
    return [line.split("|")[:-1] for line in (tools / "calls").read_text().splitlines()]


def test_shellcheck_finds_nothing():
    shellcheck = Path(sysconfig.get_path("scripts")) / "shellcheck"
    scripts = sorted(LAUNCH.glob("*.sh"))
    assert len(scripts) == 4
    done = subprocess.run([shellcheck, *scripts], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", VARIABLES)
def test_a_variable_that_is_not_set_is_told(script, tools):
    for name in VARIABLES[script]:
        others = {key: value for key, value in VARIABLES[script].items() if key != name}
        done = run(script, tools, **others)
        assert done.returncode != 0 and f"{name}: set it to" in done.stderr
        assert len(done.stderr.splitlines()) == 1 and not (tools / "calls").exists()


def test_slurm(tools):
    variables = {"SLURM_CPUS_PER_TASK": "12", "SLURM_NTASKS_PER_NODE": "8", "SLURM_GPUS_ON_NODE": "8"}
    done = run("slurm.sh", tools, **VARIABLES["slurm.sh"], **variables)
    assert done.returncode == 0, done.stderr
    (call,) = calls(tools)
    assert call[0] == "srun" and call[-2:] == ARGUMENTS
    expected = {"/venv/bin/python", "main.py", "--distributed", "--workdir=/shared/run", "--config.data.root=/data"}
    assert expected | {"--cpus-per-task=12"} < set(call)


def test_slurm_refuses_other_numbers_of_tasks_than_gpus(tools):
    wrong = {"SLURM_NTASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "8"}
    done = run("slurm.sh", tools, **VARIABLES["slurm.sh"], **wrong)
    assert done.returncode == 2 and not (tools / "calls").exists()
    assert "8 GPUs and 1 tasks" in done.stderr and "--gpus-per-node=8 --ntasks-per-node=8" in done.stderr


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False)])
def test_slurm_goes_back_into_the_queue_after_a_preemption_alone(tools, status, requeued):
    done = run("slurm.sh", tools, f'[ "$(basename "$0")" != srun ] || exit {status}', **VARIABLES["slurm.sh"])
    assert done.returncode == status
    assert (["scontrol", "requeue", "7"] in calls(tools)) == requeued


MADE = """
case "$*" in
  *" create "*) touch {tools}/made ;;
  *" list "*) [ ! -e {tools}/made ] || echo ACTIVE ;;
  *" ssh "*) {ssh} ;;
esac
"""
"""A TPU that is there as soon as it is requested; `ssh` is what happens to a run."""


def verbs(tools: Path) -> list[str]:
    """What gcloud was told to do, without the questions about the state."""
    return [call[4] for call in calls(tools) if call[4] != "list"]


def test_tpu_pod_is_requested_and_given_back(tools):
    done = run("tpu_pod.sh", tools, MADE.format(tools=tools, ssh="true"), **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 0, done.stderr
    assert verbs(tools) == ["create", "scp", "ssh", "delete"]
    (command,) = [call[-1] for call in calls(tools) if call[4] == "ssh"]
    started = command.removeprefix("--command=").split(" && ")[-1]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {started}"], capture_output=True, text=True).stdout
    script, name, *rest = words.splitlines()
    assert script == "launch/tpu_worker.sh" and name.endswith("-1")
    assert rest == ["my-bucket", "--workdir=/mnt/bucket/runs/zeroseg", *ARGUMENTS]


def test_tpu_pod_tells_a_refused_request_in_googles_words(tools):
    refused = 'case "$*" in *" create "*) echo "ERROR: quota exceeded" >&2; exit 1 ;; esac'
    done = run("tpu_pod.sh", tools, refused, **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 1 and verbs(tools) == ["create"]
    told = ["ERROR: quota exceeded", "the request for a v5litepod-16 in us-west4-a was refused; the reason is above"]
    assert done.stderr.splitlines() == told

    (tools / "calls").unlink()
    waiting = f"""
case "$*" in
  *" create "*) touch {tools}/made ;;
  *" list "*) [ ! -e {tools}/made ] || echo FAILED ;;
  *" describe "*) echo "no such type here" ;;
esac
"""
    done = run("tpu_pod.sh", tools, waiting, **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 1 and verbs(tools) == ["create", "describe", "delete"]
    assert done.stderr == "the TPU cannot be had: no such type here\n"


def test_tpu_pod_waits_no_longer_than_it_may(tools):
    waiting = f"""
case "$*" in
  *" create "*) touch {tools}/made ;;
  *" list "*) [ ! -e {tools}/made ] || echo WAITING_FOR_RESOURCES ;;
esac
"""
    done = run("tpu_pod.sh", tools, waiting, **VARIABLES["tpu_pod.sh"], WAIT_HOURS="0")
    assert done.returncode == 1 and verbs(tools) == ["create", "delete"]
    assert "no TPU came within 0 hours (the request is WAITING_FOR_RESOURCES)" in done.stderr


def test_tpu_pod_follows_the_run_again_when_the_connection_breaks(tools):
    breaks = f"[ -e {tools}/again ] || {{ touch {tools}/again; exit 255; }}"
    done = run("tpu_pod.sh", tools, MADE.format(tools=tools, ssh=breaks), **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 0, done.stderr
    assert "the connection broke; the run goes on, and is followed again" in done.stderr
    assert verbs(tools) == ["create", "scp", "ssh", "ssh", "delete"]
    first, second = (call[-1] for call in calls(tools) if call[4] == "ssh")
    assert first == second  # the run of the same name


def test_tpu_pod_refuses_types_that_it_does_not_know(tools):
    done = run("tpu_pod.sh", tools, **VARIABLES["tpu_pod.sh"] | {"TPU_TYPE": "tpu7x-16"})
    assert done.returncode == 2 and not (tools / "calls").exists()
    assert "TPU_TYPE=tpu7x-16 is not known; expected v5litepod-N" in done.stderr


@pytest.mark.end_to_end
@pytest.mark.parametrize("status", [0, 75])
def test_tpu_worker_starts_a_run_once_and_gives_its_status(tmp_path, status):
    """The second call finds the run that the first has started, as after a broken connection."""
    (tmp_path / "bin").mkdir()
    for name, does in {"gcsfuse": "", "mountpoint": ""}.items():
        (tmp_path / "bin" / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/usr/bin/env bash\necho "$*" >>ran\nsleep 1\necho trained\nexit {status}\n')
    python.chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    command = [LAUNCH / "tpu_worker.sh", "5-1", "my-bucket", "--config=a b"]
    for _ in range(2):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout) == (status, "trained\n"), done.stderr
    assert (tmp_path / "ran").read_text() == "main.py --distributed --preempted_status=75 --config=a b\n"


def test_tpu_pod_that_is_taken_away_is_replaced(tools):
    taken = f"[ -e {tools}/second ] || {{ touch {tools}/second; rm {tools}/made; exit 1; }}"
    done = run("tpu_pod.sh", tools, MADE.format(tools=tools, ssh=taken), **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 0, done.stderr
    assert "the TPU was taken away; asking for another (1)" in done.stderr
    assert verbs(tools) == ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "delete"]


def test_tpu_pod_of_a_failed_run_is_kept(tools):
    done = run(
        "tpu_pod.sh",
        tools,
        'case "$*" in *" list "*) echo ACTIVE ;; *" ssh "*) exit 2 ;; esac',
        **VARIABLES["tpu_pod.sh"],
    )
    assert done.returncode == 2
    assert "the run failed; the TPU zeroseg is still there" in done.stderr
    assert verbs(tools) == ["scp", "ssh"]


def only(value: dict[str, Any], required: set[str], optional: set[str] = frozenset()) -> None:  # type: ignore[assignment]
    """`value` has these keys and no others."""
    assert required <= value.keys() <= required | optional, value.keys()


def test_gke_applies_a_jobset(tools):
    done = run("gke.sh", tools, **VARIABLES["gke.sh"])
    assert done.returncode == 0, done.stderr
    assert calls(tools) == [["kubectl", "apply", "-f", "-"]]
    (jobset,) = yaml.safe_load_all((tools / "applied").read_text())
    # JobSet's own part, as its definition v1alpha2 has it; the rest is a Job of Kubernetes
    only(jobset, {"apiVersion", "kind", "metadata", "spec"})
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    only(jobset["metadata"], {"name"}, {"annotations", "labels", "namespace"})
    only(jobset["spec"], {"replicatedJobs"}, {"failurePolicy", "successPolicy", "network", "startupPolicy", "suspend"})
    policy = jobset["spec"]["failurePolicy"]
    only(policy, {"maxRestarts"}, {"rules", "restartStrategy"})
    for rule in policy["rules"]:
        only(rule, {"name", "action"}, {"onJobFailureReasons", "targetReplicatedJobs"})
        assert rule["action"] in ("FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts")
        assert set(rule["onJobFailureReasons"]) <= {"BackoffLimitExceeded", "DeadlineExceeded", "PodFailurePolicy"}
    (replicated,) = jobset["spec"]["replicatedJobs"]
    only(replicated, {"name", "template"}, {"replicas", "groupName", "dependsOn"})
    only(replicated["template"], {"spec"}, {"metadata"})
    job = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "train"},
        "spec": replicated["template"]["spec"],
    }
    kubernetes_validate.validate(job, "1.33", strict=True)

    assert job["spec"]["parallelism"] == job["spec"]["completions"] == 4
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["--workdir=/mnt/bucket/runs/zeroseg", *ARGUMENTS]
    assert container["resources"]["limits"] == {"google.com/tpu": 4} and container["image"] == "registry/zeroseg"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert mounted == {"bucket": "/mnt/bucket", "data": "/mnt/data", "shm": "/dev/shm"}
    assert volumes["shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Gi"}
    attributes = [volumes[name]["csi"]["volumeAttributes"] for name in ("bucket", "data")]
    assert [volume["bucketName"] for volume in attributes] == ["my-bucket"] * 2
    options = attributes[1]["mountOptions"].split(",")
    assert {"implicit-dirs", "file-cache:max-size-mb:-1", "metadata-cache:ttl-secs:-1"} < set(options)
    # bad input and a run that diverged are not started again
    (failed,) = job["spec"]["podFailurePolicy"]["rules"]
    assert failed["onExitCodes"]["values"] == [2, DIVERGED]
    assert "cloud.google.com/gke-spot" not in pod["nodeSelector"]


def test_gke_on_spot_nodes_says_how_little_time_there_is(tools):
    done = run("gke.sh", tools, **VARIABLES["gke.sh"], SPOT="yes", DATA_BUCKET="images")
    assert done.returncode == 0 and "a Spot node gives the run 15 seconds to save" in done.stderr
    (jobset,) = yaml.safe_load_all((tools / "applied").read_text())
    pod = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    assert pod["volumes"][1]["csi"]["volumeAttributes"]["bucketName"] == "images"


def test_the_schema_check_finds_mistakes(tools):
    run("gke.sh", tools, **VARIABLES["gke.sh"])
    job = yaml.safe_load((tools / "applied").read_text())["spec"]["replicatedJobs"][0]["template"]
    job |= {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}}
    wrong = json.loads(json.dumps(job).replace("restartPolicy", "restartPolice"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)
