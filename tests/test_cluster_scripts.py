# SPDX-License-Identifier: Apache-2.0
"""The scripts for clusters, run here: what would be called is played by commands in a folder.

A TPU is a folder too, the home of its one VM, where what gcloud is asked to run there does run.
"""

import importlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from absl import flags

from contourdiff_jax import cli

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "tpu_scripts"
ALL = sorted(p for p in SCRIPTS.rglob("*") if p.suffix in (".sh", ".sbatch"))
VM_TRAIN = SCRIPTS / "vm/train.sh"
GIVEN = re.compile(r'^: "\$\{(\w+):\?', re.MULTILINE)
PATIENCE = 20.0  # seconds

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or not Path("/proc").is_dir(), reason="scripts for Linux"
)


class Stage:
    """A folder of commands that note how they were called, and an environment that finds them."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.commands = folder / "commands"
        self.commands.mkdir()
        self.environment = {
            "PATH": f"{self.commands}:/usr/bin:/bin",
            "HOME": str(folder),
            "CALLS": str(folder / "calls"),
            "POLL": "0",
        }

    def play(self, name: str, script: str = "") -> None:
        """Have a command do what `script` says, once it has noted its arguments."""
        path = self.commands / name
        note = 'printf "%q " "${0##*/}" "$@" >>"$CALLS"; echo >>"$CALLS"'
        path.write_text(f"#!/usr/bin/env bash\n{note}\n{script}\n")
        path.chmod(0o755)

    def calls(self, *start: str) -> list[list[str]]:
        """The calls so far, of the commands that begin like that."""
        file = Path(self.environment["CALLS"])
        lines = file.read_text().splitlines() if file.exists() else []
        found = [shlex.split(line) for line in lines]
        return [call for call in found if call[: len(start)] == list(start)]

    def begin(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [SCRIPTS / script, *arguments],
            env=self.environment | variables,
            cwd=self.folder,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str]:
        """The script's exit status and what it says on standard error."""
        process = self.begin(script, *arguments, **variables)
        _, said = process.communicate(timeout=PATIENCE)
        return process.returncode, said


@pytest.fixture
def stage(tmp_path):
    return Stage(tmp_path)


def wait_for(condition):
    """What a condition gives once it is something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come to pass")


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(SCRIPTS)))
def test_shellcheck_finds_nothing(path):
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    found = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", ALL, ids=lambda p: str(p.relative_to(SCRIPTS)))
def test_a_missing_variable_is_one_line_before_anything_is_called(stage, path):
    for command in ("gcloud", "sudo", "srun", "sbatch", "python3"):
        stage.play(command)
    names = GIVEN.findall(path.read_text())
    assert names
    for missing in names:
        variables = {name: "something" for name in names if name != missing}
        status, said = stage.run(str(path.relative_to(SCRIPTS)), **variables)
        assert status != 0
        assert len(said.splitlines()) == 1
        assert re.search(rf"{missing}: \w", said)
    assert stage.calls() == []


# --------------------------------------------------------------------------------------------------
# TPU
# --------------------------------------------------------------------------------------------------

TPU = {
    "TPU_NAME": "pod",
    "ZONE": "zone-a",
    "ACCELERATOR_TYPE": "v5litepod-16",
    "RUNTIME_VERSION": "v2-alpha-tpuv5-lite",
}
DATA = {"BUCKET": "mine", "STORE": "stores/mr", "RUN": "runs/mr"}

# $TPU/queue and $TPU/node hold the states of the request and of the TPU.
GCLOUD = """
case "$1 $2 $3 $4" in
"compute tpus tpu-vm describe") cat "$TPU/node" ;;
"compute tpus queued-resources describe") cat "$TPU/queue" ;;
"compute tpus queued-resources create") echo ACTIVE >"$TPU/queue"; echo READY >"$TPU/node" ;;
"compute tpus queued-resources delete") rm -f "$TPU/queue" "$TPU/node" ;;
"compute tpus tpu-vm scp") mkdir -p "$TPU/home" && cp "$5" "$TPU/home/${6#*:}" ;;
"compute tpus tpu-vm ssh")
    for flag; do case $flag in --command=*) command=${flag#--command=} ;; esac; done
    cd "$TPU/home" && HOME=$TPU/home bash -c "$command" ;;
esac
"""
REQUEST = ("gcloud", "compute", "tpus", "queued-resources")


@pytest.fixture
def tpu(stage):
    """A stage with gcloud and what VMs have."""
    folder = stage.folder / "tpu"
    folder.mkdir()
    stage.environment |= TPU | {"TPU": str(folder)}
    stage.play("gcloud", GCLOUD)
    stage.play("sudo", 'exec "$@"')
    stage.play("systemctl")
    stage.play(
        "systemd-run", 'while [[ $1 == --* ]]; do shift; done; exec "${0%/*}/${1##*/}" "${@:2}"'
    )
    stage.play("gcsfuse", 'touch "$TPU/mounted"')
    stage.play("mountpoint", '[ -e "$TPU/mounted" ]')
    stage.play("pip")
    stage.play(
        "python3", 'case "$*" in *venv*) mkdir -p .venv/bin; cp "${0%/*}/pip" .venv/bin ;; esac'
    )
    stage.play("contourdiff")
    return stage


def state(stage, queue: str, node: str) -> None:
    folder = Path(stage.environment["TPU"])
    (folder / "queue").write_text(queue)
    (folder / "node").write_text(node)


def test_a_tpu_is_made_by_a_queued_resource(tpu):
    assert tpu.run("create.sh", "--network=lab", SPOT="1")[0] == 0
    flags = ["--node-id=pod", "--zone=zone-a", "--accelerator-type=v5litepod-16"]
    flags += ["--runtime-version=v2-alpha-tpuv5-lite", "--spot", "--network=lab"]
    assert tpu.calls(*REQUEST, "create") == [[*REQUEST, "create", "pod", *flags]]


def test_a_tpu_that_is_not_spot_is_not_asked_for_as_spot(tpu):
    tpu.run("create.sh")
    assert "--spot" not in tpu.calls(*REQUEST, "create")[0]


def test_a_tpu_that_is_ready_stays(tpu):
    state(tpu, "ACTIVE", "READY")
    assert tpu.run("create.sh")[0] == 0
    assert not tpu.calls(*REQUEST, "create") + tpu.calls(*REQUEST, "delete")


@pytest.mark.parametrize(("queue", "node"), [("SUSPENDED", ""), ("ACTIVE", "PREEMPTED")])
def test_a_tpu_that_was_preempted_is_made_anew(tpu, queue, node):
    state(tpu, queue, node)
    assert tpu.run("create.sh")[0] == 0
    assert [call[4] for call in tpu.calls(*REQUEST) if call[4] != "describe"] == [
        "delete",
        "create",
    ]


def test_a_request_that_is_queued_keeps_its_place(tpu):
    state(tpu, "WAITING_FOR_RESOURCES", "")
    process = tpu.begin("create.sh", POLL="0.05")
    wait_for(lambda: len(tpu.calls(*REQUEST, "describe")) > 2)
    state(tpu, "ACTIVE", "READY")
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert not tpu.calls(*REQUEST, "create") + tpu.calls(*REQUEST, "delete")


def test_a_request_that_failed_is_not_repeated(tpu):
    state(tpu, "FAILED", "")
    status, said = tpu.run("create.sh")
    assert status == 1
    assert "pod: the request failed" in said and len(said.splitlines()) == 1
    assert not tpu.calls(*REQUEST, "create")


def test_setup_brings_package_bucket_and_store(tpu):
    state(tpu, "ACTIVE", "READY")
    status, said = tpu.run("setup.sh", **DATA)
    assert (status, said) == (0, "")
    home = Path(tpu.environment["TPU"]) / "home"
    with tarfile.open(home / "contourdiff.tgz") as archive:
        names = archive.getnames()
    assert {"pyproject.toml", "README.md", "contourdiff_jax/cli.py", "configs/heads.py"} < {*names}
    assert not [name for name in names if "__pycache__" in name]
    assert tpu.calls("pip") == [
        ["pip", "install", "--quiet", "--constraint=constraints.txt", ".[tpu]"]
    ]
    assert tpu.calls("gcsfuse")[0][-2:] == ["mine", f"{home}/bucket"]
    assert tpu.calls("gcloud", "storage") == [
        ["gcloud", "storage", "rsync", "gs://mine/stores/mr", f"{home}/store", "--recursive"]
    ]


def test_setup_can_be_repeated(tpu):
    state(tpu, "ACTIVE", "READY")
    for _ in range(2):
        assert tpu.run("setup.sh", **DATA)[0] == 0
    assert len(tpu.calls("gcsfuse")) == 1
    assert len([call for call in tpu.calls("python3") if "venv" in call]) == 1


def test_training_goes_on_after_a_preemption_with_the_same_command(tpu):
    tpu.play(
        "contourdiff",
        '[ -e "$TPU/first" ] || { touch "$TPU/first"; echo PREEMPTED >"$TPU/node"; exit 1; }',
    )
    flags = ["--config=configs/heads.py", "--config.contours.preset=two words"]
    assert tpu.run("run.sh", *flags, **DATA)[0] == 0
    home = tpu.environment["TPU"] + "/home"
    places = [f"--store={home}/store", f"--workdir={home}/bucket/runs/mr"]
    command = ["contourdiff", "train", "--coordinator=auto", *places, *flags]
    assert tpu.calls("contourdiff") == [command, command]
    assert len(tpu.calls(*REQUEST, "create")) == 2


def test_what_a_lost_connection_left_is_stopped_before_it_is_resumed(tpu):
    tpu.play("contourdiff", '[ -e "$TPU/first" ] || { touch "$TPU/first"; exit 255; }')
    assert tpu.run("run.sh", **DATA)[0] == 0
    order = [call[0] for call in tpu.calls() if call[0] in ("systemctl", "contourdiff")]
    assert order == ["systemctl", "contourdiff"] * 2
    assert len(tpu.calls(*REQUEST, "create")) == 1


def test_training_that_fails_on_a_tpu_that_is_well_is_not_repeated(tpu):
    tpu.play("contourdiff", "exit 2")
    assert tpu.run("run.sh", **DATA)[0] == 2
    assert len(tpu.calls("contourdiff")) == 1


def test_a_run_is_fetched_from_the_bucket_alone(tpu):
    assert tpu.run("fetch.sh", OUT=str(tpu.folder / "runs/mr"), **DATA)[0] == 0
    (call,) = tpu.calls("gcloud")
    assert call[:5] == ["gcloud", "storage", "rsync", "gs://mine/runs/mr", f"{tpu.folder}/runs/mr"]
    (pattern,) = [a.removeprefix("--exclude=") for a in call if a.startswith("--exclude=")]
    assert re.match(pattern, "checkpoints/400.orbax-checkpoint-tmp-2/params/d/0")
    assert not re.match(pattern, "checkpoints/400/params/d/0")


def test_a_tpu_is_deleted_with_its_request(tpu):
    state(tpu, "ACTIVE", "READY")
    assert tpu.run("delete.sh")[0] == 0
    assert tpu.calls("gcloud") == [
        [*REQUEST, "delete", "pod", "--zone=zone-a", "--force", "--quiet"]
    ]


# --------------------------------------------------------------------------------------------------
# SLURM
# --------------------------------------------------------------------------------------------------

# Starts a process for each node, and kills them all when it is told to end, as the real one does.
SRUN = """
trap 'kill -KILL $(cat "$CALLS.processes")' TERM
for node in $(seq 0 $((${SLURM_NNODES:-1} - 1))); do
    SLURM_PROCID=$node "$@" &
    echo $! >>"$CALLS.processes"
done
worst=0
for process in $(cat "$CALLS.processes"); do
    wait "$process" || { status=$?; [ "$status" -le "$worst" ] || worst=$status; }
done
rm "$CALLS.processes"
exit "$worst"
"""
# Trains until it is told to stop, and the second time to the end.
TRAIN = """
for flag; do case $flag in --workdir=*) run=${flag#--workdir=} ;; esac; done
[ ! -e "$run/checkpoints" ] || exit 0
trap 'mkdir -p "$run/checkpoints/$SLURM_PROCID"; exit 1' TERM
echo "$JAX_LOCAL_DEVICE_IDS" >"$run/training$SLURM_PROCID"
for _ in $(seq 400); do sleep 0.05; done
"""
JOB = {"SLURM_JOB_ID": "71", "SLURM_CPUS_PER_TASK": "8", "SLURM_GPUS_ON_NODE": "4"}


@pytest.fixture
def slurm(stage):
    stage.environment |= JOB
    stage.play("srun", SRUN)
    stage.play("scancel", 'kill -TERM $(cat "$CALLS.processes")')
    stage.play("squeue", 'echo "${STATE:-RUNNING}"')
    stage.play("scontrol")
    stage.play("contourdiff")
    return stage


@pytest.fixture
def run(slurm):
    folder = slurm.folder / "run"
    folder.mkdir()
    slurm.environment |= {"RUN": str(folder), "STORE": "stores/mr"}
    slurm.play("contourdiff", TRAIN)
    return folder


def stop_training(slurm, run, nodes=1, **variables) -> int:
    """Send SIGTERM to a job that trains; returns its exit status."""
    process = slurm.begin("slurm/train.sbatch", SLURM_NNODES=str(nodes), **variables)
    wait_for(lambda: len([*run.glob("training*")]) == nodes)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    return process.returncode


@pytest.mark.parametrize("nodes", [1, 3])
def test_training_that_is_told_to_stop_saves_and_queues_again(slurm, run, nodes):
    assert stop_training(slurm, run, nodes) == 0
    assert len([*(run / "checkpoints").iterdir()]) == nodes
    assert slurm.calls("scontrol") == [["scontrol", "requeue", "71"]]
    # The job begins again from its first line.
    assert slurm.run("slurm/train.sbatch", SLURM_NNODES=str(nodes)) == (0, "")
    assert len(slurm.calls("scontrol")) == 1


def test_a_process_is_given_all_gpus_of_its_node(slurm, run):
    stop_training(slurm, run)
    assert (run / "training0").read_text() == "0,1,2,3\n"


def test_flags_and_container_reach_training(slurm):
    slurm.play("apptainer")
    container = "apptainer run --nv contourdiff.sif"
    given = {"STORE": "a store", "RUN": "runs/mr", "CONTOURDIFF": container}
    assert slurm.run("slurm/train.sbatch", "--config.train.batch=8", **given)[0] == 0
    flags = ["--coordinator=auto", "--store=a store", "--workdir=runs/mr", "--config.train.batch=8"]
    assert slurm.calls("apptainer") == [[*container.split(), "train", *flags]]


def test_a_cancelled_job_does_not_queue_again(slurm, run):
    assert stop_training(slurm, run, STATE="COMPLETING") == 1
    assert not slurm.calls("scontrol")


def test_training_that_stops_alone_queues_again_if_it_saved(slurm, run):
    process = slurm.begin("slurm/train.sbatch")
    wait_for(lambda: [*run.glob("training*")])
    for number in (slurm.folder / "calls.processes").read_text().split():
        os.kill(int(number), signal.SIGTERM)
    process.communicate(timeout=PATIENCE)
    assert slurm.calls("scontrol") == [["scontrol", "requeue", "71"]]


@pytest.mark.parametrize("status", [1, 2, 137])
def test_training_that_fails_does_not_queue_again(slurm, run, status):
    (run / "checkpoints").mkdir()
    os.utime(run / "checkpoints", (0, 0))
    slurm.play("contourdiff", f"exit {status}")
    assert slurm.run("slurm/train.sbatch")[0] == status
    assert not slurm.calls("scontrol")


TRANSLATION = {"RUN": "runs/mr", "PRESET": "ct"}
ARRAY = {"SLURM_ARRAY_JOB_ID": "71", "SLURM_ARRAY_TASK_ID": "5"}
# Goes through a folder as translate does, by the claims that it takes.
CLAIMING = f"""
exec {sys.executable} - "$@" <<'PYTHON'
import sys, time
from pathlib import Path
from contourdiff_jax.runtime import disk as claims
given = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[2:])
for volume in sorted(Path(given["source"]).iterdir()):
    target = Path(given["out"]) / volume.name
    if not target.exists():
        with claims.claim(target.with_suffix(".lock")) as ours:
            if ours and not target.exists():
                time.sleep(0.05)
                target.open("x").close()
PYTHON
"""


@pytest.mark.parametrize("tasks", [1, 3])
def test_an_array_of_any_size_translates_every_volume_once(slurm, tasks):
    slurm.environment["PYTHONPATH"] = str(ROOT)
    slurm.play("srun", '"$@"')
    slurm.play("contourdiff", CLAIMING)
    source, out = slurm.folder / "source", slurm.folder / "out"
    for folder in (source, out):
        folder.mkdir()
    for number in range(10):
        (source / f"{number}.nii").touch()
    given = TRANSLATION | {"SOURCE": str(source), "OUT": str(out), "SLURM_ARRAY_JOB_ID": "71"}
    jobs = [
        slurm.begin("slurm/translate.sbatch", SLURM_ARRAY_TASK_ID=str(task), **given)
        for task in range(tasks)
    ]
    for job in jobs:
        _, said = job.communicate(timeout=3 * PATIENCE)
        assert (job.returncode, said) == (0, "")
    assert {p.name for p in out.iterdir()} == {p.name for p in source.iterdir()}


def test_translation_that_is_told_to_stop_queues_its_own_task_again(slurm):
    slurm.play("contourdiff", f"touch {slurm.folder}/working; sleep 1")
    given = TRANSLATION | ARRAY | {"SOURCE": "scans", "OUT": "out"}
    job = slurm.begin("slurm/translate.sbatch", **given)
    wait_for((slurm.folder / "working").exists)
    job.send_signal(signal.SIGTERM)
    job.communicate(timeout=PATIENCE)
    assert slurm.calls("scontrol") == [["scontrol", "requeue", "71_5"]]


@pytest.mark.parametrize(("status", "again"), [(143, True), (1, False), (0, False)])
def test_translation_queues_again_only_if_it_was_told_to_stop(slurm, status, again):
    slurm.play("contourdiff", f"exit {status}")
    given = TRANSLATION | ARRAY | {"SOURCE": "scans", "OUT": "out"}
    assert slurm.run("slurm/translate.sbatch", **given)[0] == status
    assert bool(slurm.calls("scontrol")) == again


def test_each_job_waits_for_the_one_before(slurm):
    slurm.play("sbatch", 'echo "$(wc -l <"$CALLS");cluster"')
    given = {"STORE": "stores/mr", "SOURCE": "scans", "OUT": "out", "SCORES": "scores"}
    given |= TRANSLATION | {"TRAIN": "--nodes=4 --gpus-per-node=8"}
    assert slurm.run("slurm/submit.sh", "--config=mine.py", **given) == (0, "")
    folder = f"{SCRIPTS}/slurm"
    submit = ["sbatch", "--parsable"]
    train = [*submit, "--nodes=4", "--gpus-per-node=8", f"{folder}/train.sbatch"]
    assert slurm.calls("sbatch") == [
        [*train, "--config=mine.py"],
        [*submit, "--dependency=afterok:1", f"{folder}/translate.sbatch"],
        [*submit, "--dependency=afterok:2", f"{folder}/evaluate.sbatch"],
    ]


def test_evaluation_scores_the_translations(slurm):
    given = {"SOURCE": "scans", "OUT": "out", "SCORES": "scores"}
    assert slurm.run("slurm/evaluate.sbatch", "--truth=true", **given)[0] == 0
    flags = ["--translated=out", "--source=scans", "--out=scores", "--truth=true"]
    assert slurm.calls("contourdiff") == [["contourdiff", "evaluate", *flags]]


@pytest.mark.parametrize(
    "path", [p for p in ALL if "contourdiff[@]" in p.read_text()] + [VM_TRAIN], ids=lambda p: p.name
)
def test_scripts_give_flags_that_the_commands_have(path):
    text = path.read_text()
    (command, given), *others = re.findall(r"contourdiff(?:\[@\]\})?\" (\w+) (--.*)", text)
    assert not others
    values = flags.FlagValues()
    importlib.import_module(cli.COMMANDS[command]).define_flags(values)
    assert set(re.findall(r"--(\w+)", given)) <= set(values)


def test_the_container_is_made_of_files_that_exist():
    recipe = (SCRIPTS / "slurm/contourdiff.def").read_text()
    (files,) = re.findall(r"%files\n((?:    .+\n)+)", recipe)
    for line in files.splitlines():
        source, target = line.split()
        assert (ROOT / source).exists()
        assert target == f"/opt/contourdiff/{source}"
    assert "pip install --no-cache-dir --constraint constraints.txt '.[cuda]'" in recipe
