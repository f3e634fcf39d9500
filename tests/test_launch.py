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
    done = run("slurm.sh", tools, **VARIABLES["slurm.sh"])
    assert done.returncode == 0, done.stderr
    (call,) = calls(tools)
    assert call[0] == "srun" and call[-2:] == ARGUMENTS
    expected = {"/venv/bin/python", "main.py", "--distributed", "--workdir=/shared/run", "--config.data.root=/data"}
    assert expected < set(call)


@pytest.mark.parametrize(("status", "requeued"), [(75, True), (1, False)])
def test_slurm_goes_back_into_the_queue_after_a_preemption_alone(tools, status, requeued):
    done = run("slurm.sh", tools, f'[ "$(basename "$0")" != srun ] || exit {status}', **VARIABLES["slurm.sh"])
    assert done.returncode == status
    assert (["scontrol", "requeue", "7"] in calls(tools)) == requeued


def test_tpu_pod_is_asked_for_and_given_back(tools):
    found = f"""
case "$*" in
  *create*) touch {tools}/made ;;
  *" list "*) [ ! -e {tools}/made ] || echo ACTIVE ;;
esac
"""
    done = run("tpu_pod.sh", tools, found, **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 0, done.stderr
    verbs = [call[4] for call in calls(tools) if call[4] != "list"]
    assert verbs == ["create", "scp", "ssh", "delete"]
    (command,) = [call[-1] for call in calls(tools) if call[4] == "ssh"]
    started = command.removeprefix("--command=").split(" && ")[-1]
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {started}"], capture_output=True, text=True).stdout
    assert words.splitlines() == ["launch/tpu_worker.sh", "my-bucket", "--workdir=/mnt/bucket/runs/zeroseg", *ARGUMENTS]


def test_tpu_pod_that_is_taken_away_is_replaced(tools):
    behaviour = f"""
case "$*" in
  *create*) touch {tools}/made ;;
  *" list "*) [ ! -e {tools}/made ] || echo ACTIVE ;;
  *" ssh "*) [ -e {tools}/second ] || {{ touch {tools}/second; rm {tools}/made; exit 1; }} ;;
esac
"""
    done = run("tpu_pod.sh", tools, behaviour, **VARIABLES["tpu_pod.sh"])
    assert done.returncode == 0, done.stderr
    assert "the TPU was taken away; asking for another (1)" in done.stderr
    verbs = [call[4] for call in calls(tools) if call[4] != "list"]
    assert verbs == ["create", "scp", "ssh", "delete", "create", "scp", "ssh", "delete"]


def test_tpu_pod_of_a_failed_run_is_kept(tools):
    done = run(
        "tpu_pod.sh",
        tools,
        'case "$*" in *" list "*) echo ACTIVE ;; *" ssh "*) exit 2 ;; esac',
        **VARIABLES["tpu_pod.sh"],
    )
    assert done.returncode == 2
    assert "the run failed; the TPU zeroseg is still there" in done.stderr
    assert [call[4] for call in calls(tools) if call[4] != "list"] == ["scp", "ssh"]


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
    assert pod["volumes"][0]["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"


def test_the_schema_check_finds_mistakes(tools):
    run("gke.sh", tools, **VARIABLES["gke.sh"])
    job = yaml.safe_load((tools / "applied").read_text())["spec"]["replicatedJobs"][0]["template"]
    job |= {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "train"}}
    wrong = json.loads(json.dumps(job).replace("restartPolicy", "restartPolice"))
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.33", strict=True)
