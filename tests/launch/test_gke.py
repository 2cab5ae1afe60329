"""Manifests for GKE, and what xpk makes of our command."""

import shutil

import pytest
import yaml

from tests.launch.commands import ROOT, calls, fake, run

JOBSET, XPK = ROOT / "launch" / "gke" / "jobset.sh", ROOT / "launch" / "gke" / "xpk.sh"
ARGUMENTS = ["train", r"--config.trainable=unet\..*|text & more", '--workdir=/mnt/jaxcxr/a "b"']


def submit(folder, target, **environment):
    """The manifest that kubectl was given."""
    fake(folder, "kubectl")
    done = run([JOBSET, "cxr", target, "registry/me/jaxcxr:1", "my-bucket", *ARGUMENTS], folder, **environment)
    assert done.returncode == 0, done.stderr
    ((*command, manifest),) = calls(folder)
    assert command == ["kubectl", "apply", "-f", "-"]
    assert "{{" not in manifest
    return yaml.safe_load(manifest)


def pod(manifest):
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize(
    ("target", "accelerator", "hosts", "chips"),
    [
        ("v4:2x2x2", "tpu-v4-podslice", 2, 4),
        ("v5e:4x4", "tpu-v5-lite-podslice", 4, 4),
        ("v5e:1x1", "tpu-v5-lite-podslice", 1, 1),
        ("v5p:4x4x4", "tpu-v5p-slice", 16, 4),
        ("v6e:16x16", "tpu-v6e-slice", 64, 4),
    ],
)
def test_a_tpu_slice(tmp_path, target, accelerator, hosts, chips):
    manifest = submit(tmp_path, target, SLICES="2")
    workers = manifest["spec"]["replicatedJobs"][0]
    assert workers["replicas"] == 2
    job = workers["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (hosts, hosts, 0)
    node = pod(manifest)["nodeSelector"]
    assert node["cloud.google.com/gke-tpu-accelerator"] == accelerator
    assert node["cloud.google.com/gke-tpu-topology"] == target.split(":")[1]
    (container,) = pod(manifest)["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": chips}
    assert container["command"] + container["args"] == ["launch/worker.sh", "tpu", "jaxcxr", *ARGUMENTS]


@pytest.mark.parametrize(("target", "hosts", "gpus"), [("h100:16", 2, 8), ("h200:8", 1, 8), ("h100:1", 1, 1)])
def test_gpu_nodes_are_told_of_one_another(tmp_path, target, hosts, gpus):
    manifest = submit(tmp_path, target)
    workers = manifest["spec"]["replicatedJobs"][0]
    assert workers["template"]["spec"]["completions"] == hosts
    (container,) = pod(manifest)["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": gpus}
    told = {variable["name"]: variable for variable in container["env"]}
    # A pod's name is JobSet-job-replica-number, its domain the JobSet.
    assert told["JAXCXR_COORDINATOR"]["value"] == f"cxr-{workers['name']}-0-0.cxr:8476"
    assert told["JAXCXR_NUM_PROCESSES"]["value"] == str(hosts)
    field = told["JAXCXR_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert field == "metadata.annotations['batch.kubernetes.io/job-completion-index']"


@pytest.mark.parametrize("target", ["v5e:4x4", "h100:8"])
def test_a_preemption_starts_all_pods_again_and_a_mistake_does_not(tmp_path, target):
    manifest = submit(tmp_path, target)
    policy = manifest["spec"]["failurePolicy"]
    assert policy["maxRestarts"] == 100
    assert policy["rules"] == [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}]
    (rule,) = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    (container,) = pod(manifest)["containers"]
    assert rule["action"] == "FailJob"
    assert rule["onExitCodes"] == {"containerName": container["name"], "operator": "In", "values": [2]}
    assert pod(manifest)["restartPolicy"] == "Never"
    (mount,) = [mount for mount in container["volumeMounts"] if mount["mountPath"] == "/mnt/jaxcxr"]
    (volume,) = [volume for volume in pod(manifest)["volumes"] if volume["name"] == mount["name"]]
    assert volume["csi"]["volumeAttributes"]["bucketName"] == "my-bucket"


@pytest.mark.parametrize(
    "target",
    [
        "v5e",
        "v5e:",
        "v9:2x2",
        "h100:12",
        "v5e:3x3",
        "v6e:4x16",
        "v5e:axb",
        "h100:2x4",
        "v5e:16",
        "v5e:4x4x4",
        "v5p:4x4",
        "v4:2",
    ],
)
def test_a_target_that_does_not_exist_is_told(tmp_path, target):
    fake(tmp_path, "kubectl")
    done = run([JOBSET, "cxr", target, "image", "bucket", "train"], tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{target}: ")
    assert calls(tmp_path) == []


def test_slices_of_gpus_are_refused(tmp_path):
    fake(tmp_path, "kubectl")
    done = run([JOBSET, "cxr", "h100:8", "image", "bucket", "train"], tmp_path, SLICES="2")
    assert done.returncode == 2
    assert done.stderr.startswith("h100:8: GPUs have no slices")
    assert done.stderr.count("\n") == 1
    assert calls(tmp_path) == []
    assert submit(tmp_path, "h100:16")["spec"]["replicatedJobs"][0]["replicas"] == 1


def xpk(folder, *options, **environment):
    argv = [XPK, "my-cluster", "cxr", "v5litepod-16", "registry/me/jaxcxr:1", "my-storage", *ARGUMENTS]
    return run(argv, folder, timeout=200, XPK=" ".join(options), **environment)


def test_xpk_is_asked_for_the_same(tmp_path):
    fake(tmp_path, "xpk")
    assert xpk(tmp_path, "--spot", "--num-slices=2").returncode == 0
    ((*command, last),) = calls(tmp_path)
    assert command[:3] == ["xpk", "workload", "create"]
    assert {"--device-type=v5litepod-16", "--max-restarts=100", "--spot", "--num-slices=2"} < set(command)
    assert last.startswith("--command=launch/worker.sh tpu jaxcxr train ")


@pytest.mark.skipif(shutil.which("xpk") is None, reason="xpk is not on PATH (pip install xpk, in a place of its own)")
def test_xpk_makes_a_jobset_of_it(tmp_path):
    """A dry run of xpk itself."""
    file = tmp_path / "manifest.yaml"
    options = [
        "--dry-run",
        "--skip-validation",
        "--project=mine",
        "--zone=us-central1-a",
        f"--output-manifest-file={file}",
    ]
    done = xpk(None, *options, HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    manifest = yaml.safe_load(file.read_text())
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (manifest["kind"], job["completions"], manifest["spec"]["failurePolicy"]["maxRestarts"]) == (
        "JobSet",
        4,
        100,
    )
    (container,) = job["template"]["spec"]["containers"]
    (line,) = [line for line in container["command"][-1].splitlines() if "worker.sh" in line]
    # The words reach the script as they were given, and it is what gets SIGTERM.
    fake(tmp_path / "launch", "worker.sh")
    done = run(["bash", "-c", f"cd {tmp_path}; {line} wait $PID"])
    assert calls(tmp_path / "launch") == [["worker.sh", "tpu", "jaxcxr", *ARGUMENTS]]
