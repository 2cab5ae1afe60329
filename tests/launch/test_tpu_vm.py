"""Renting TPU slices from a cloud that is played: `gcloud` is a script that keeps a slice's state in a file."""

import subprocess

import pytest

from tests.launch.commands import ROOT, calls, fake, run

SCRIPT = ROOT / "launch" / "tpu_vm.sh"
# `fates` has what becomes of each training: its exit code, and whether the slice is preempted meanwhile.
GCLOUD = """
group=$3 verb=$4 now=$(cat "$here/state" 2>/dev/null)
become() { echo "$1" >"$here/state"; }
case "$group $verb" in
  "tpu-vm describe") [ "$now" = ACTIVE ] && echo READY ;;
  "queued-resources describe")
    echo "$now"
    case $now in
      WAITING_FOR_RESOURCES) become PROVISIONING ;;
      PROVISIONING) become ACTIVE ;;
      SUSPENDING) become SUSPENDED ;;
    esac
    ;;
  "queued-resources create") become WAITING_FOR_RESOURCES ;;
  "queued-resources delete") rm "$here/state" ;;
  "tpu-vm ssh")
    [ "$now" = ACTIVE ] || exit 255
    if [[ "$*" = *worker.sh* ]]; then
      read -r code preempted <"$here/fates"
      sed -i 1d "$here/fates"
      if [ -n "$preempted" ]; then become SUSPENDING; fi
      exit "$code"
    fi
    ;;
esac
"""
ARGUMENTS = [
    "train",
    "--config",
    "configs/finetune.py",
    r"--config.trainable=unet\..*|text",
    "--workdir=/mnt/jaxcxr/a b",
]


@pytest.fixture
def cloud(tmp_path):
    fake(tmp_path / "bin", "gcloud", GCLOUD)
    return tmp_path / "bin"


def rent(cloud, *fates, type="v5litepod-16", **environment):
    (cloud / "fates").write_text("".join(f"{fate}\n" for fate in fates))
    argv = [SCRIPT, "cxr", "europe-west4-b", type, "my-bucket", *ARGUMENTS]
    return run(argv, cloud, POLL="0.01", **environment)


def steps(cloud):
    """What gcloud was asked to do, but for questions."""
    names = []
    for _, _, _, group, verb, *rest in calls(cloud):
        if verb == "ssh":
            verb = "train" if any("worker.sh" in argument for argument in rest) else "set up"
        if verb != "describe":
            names.append(f"{group} {verb}" if group == "queued-resources" else verb)
    return names


RENTED = ["queued-resources create", "scp", "set up", "train"]
GIVEN_BACK = ["queued-resources delete"]


def test_rents_sets_up_trains_and_gives_back(cloud):
    done = rent(cloud, "0")
    assert done.returncode == 0, done.stderr
    assert steps(cloud) == RENTED + GIVEN_BACK
    create = next(call for call in calls(cloud) if "create" in call)
    assert create == ["gcloud", "compute", "tpus", "queued-resources", "create", "cxr", "--node-id=cxr",
                      "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite", "--spot",
                      "--zone=europe-west4-b"]  # fmt: skip
    assert all("--zone=europe-west4-b" in call for call in calls(cloud))
    assert all("--worker=all" in call for call in calls(cloud) if "ssh" in call or "scp" in call)


def test_the_hosts_get_the_arguments_as_they_were_given(cloud, tmp_path):
    rent(cloud, "0")
    (remote,) = [a[len("--command=") :] for call in calls(cloud) for a in call if "worker.sh" in a]
    # What a host would run, but in a folder that plays its home.
    (tmp_path / "jaxcxr").mkdir()
    fake(tmp_path / "jaxcxr" / "launch", "worker.sh")
    subprocess.run(["bash", "-c", remote], cwd=tmp_path, check=True)
    assert calls(tmp_path / "jaxcxr" / "launch") == [["worker.sh", "tpu", "jaxcxr", *ARGUMENTS]]


def test_a_preempted_slice_is_rented_again_until_the_training_is_done(cloud):
    done = rent(cloud, "143 preempted", "255 preempted", "255 preempted", "134 preempted", "0")
    assert done.returncode == 0, done.stderr
    assert steps(cloud) == (RENTED + GIVEN_BACK) * 5


def test_a_lost_connection_is_made_again_on_the_same_slice(cloud):
    assert rent(cloud, "255", "0").returncode == 0
    assert steps(cloud) == RENTED + RENTED[1:] + GIVEN_BACK


def test_a_mistake_in_the_arguments_ends_it_and_tells_that_the_slice_is_rented(cloud):
    done = rent(cloud, "2")
    assert done.returncode == 2
    assert steps(cloud) == RENTED
    assert "gcloud compute tpus queued-resources delete cxr --zone=europe-west4-b --force" in done.stderr


def test_it_gives_up_after_three_failures_of_a_slice_that_is_there(cloud):
    done = rent(cloud, "1", "1 preempted", "1", "1", "0")
    assert done.returncode == 1
    assert "three times" in done.stderr
    assert steps(cloud).count("train") == 4
    assert (cloud / "state").read_text() == "ACTIVE\n"  # for a look at it


def test_a_slice_that_is_there_already_is_used_and_kept_if_asked(cloud):
    (cloud / "state").write_text("ACTIVE")
    done = rent(cloud, "0", KEEP="1")
    assert steps(cloud) == RENTED[1:]
    assert "still rented" in done.stdout


@pytest.mark.parametrize(
    ("type", "runtime"),
    [("v4-8", "tpu-ubuntu2204-base"), ("v5p-64", "v2-alpha-tpuv5"), ("v6e-8", "v2-alpha-tpuv6e")],
)
def test_options_of_renting(cloud, type, runtime):
    rent(cloud, "0", type=type, SPOT="0", RENT="--reserved --network=mine")
    create = next(call for call in calls(cloud) if "create" in call)
    assert f"--runtime-version={runtime}" in create
    assert {"--reserved", "--network=mine"} < set(create)
    assert "--spot" not in create


def test_an_unknown_type_is_told_before_anything_is_rented(cloud):
    done = rent(cloud, type="v9-8")
    assert (done.returncode, calls(cloud)) == (2, [])
    assert "v9-8: wants a type like" in done.stderr


def test_a_host_is_set_up_once(tmp_path):
    """Nothing is installed where everything is there."""
    bin = tmp_path / "bin"
    for name in ("gcsfuse", "sudo", "mountpoint", "curl"):
        fake(bin, name)
    (tmp_path / ".local").mkdir()
    fake(tmp_path / ".local" / "bin", "uv")
    done = run([ROOT / "launch" / "tpu_setup.sh", "my-bucket"], bin, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert [call[0] for call in calls(bin)] == ["sudo", "mountpoint"]
    assert calls(tmp_path / ".local" / "bin")[-1][-2:] == ["-e", ".[data,tpu]"]
