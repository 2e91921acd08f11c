"""train.py in several processes: how they meet, what they must have in common, and how they end."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen

import pytest
import yaml

from longformer_jax.training.metrics import read_metrics
from tests.training.commands import CONFIG_FLAG, LIMITED, checkpoints, free_port, read_until

ROOT = Path(__file__).resolve().parents[2]
KUBERNETES = "docs/cluster/kubernetes.yaml"
DISTRIBUTED = [CONFIG_FLAG, "--workdir=w", "--distributed"]
TWO = ["--num_processes=2", "--process_id=1", "--join_timeout=1"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            DISTRIBUTED,
            "--distributed finds no cluster (coordinator_address should be defined.); expected a process that ",
        ),
        (
            [*DISTRIBUTED, "--coordinator=a:1"],
            "--distributed finds no cluster (Number of processes must be defined.); exp",
        ),
        (
            [*DISTRIBUTED, "--num_processes=2", "--process_id=0"],
            "--distributed finds no cluster (coordinator_address should be defined.); expected a process that one has "
            "started, or all of --coordinator=HOST:PORT, --num_processes=N and --process_id=I",
        ),
        (DISTRIBUTED[:2] + TWO[:2], "--num_processes is 2; expected --distributed beside it"),
        (
            [*DISTRIBUTED, "--coordinator=host", *TWO],
            "--coordinator is 'host'; expected HOST:PORT, such as 10.0.0.1:1234",
        ),
        ([*DISTRIBUTED, "--num_processes=0"], "--num_processes is 0; expected at least 1"),
        ([*DISTRIBUTED, "--num_processes=2", "--process_id=2"], "--process_id is 2; expected 0 to 1"),
        (
            [*DISTRIBUTED, "--num_processes=two"],
            "flag --num_processes=two: invalid literal for int() with base 10: 'two'",
        ),
        (
            [*DISTRIBUTED, "--coordinator=127.0.0.1:1", *TWO],
            "--coordinator is '127.0.0.1:1', where nobody answers within 1 s (Connection refused); expected process 0",
        ),
    ],
)
def test_bad_input_takes_one_line(run_script: Callable, arguments: list[str], message: str) -> None:
    result = run_script("train.py", *arguments)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: {message}")


def test_the_environment_may_describe_the_processes(run_script: Callable) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        variables = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
        result = run_script("train.py", *DISTRIBUTED, **variables)
    expected = (
        f"error: --coordinator is '{address}', where process 0 cannot listen (Address already in use); expected a free"
    )
    assert result.returncode == 2 and result.stderr.startswith(expected)
    result = run_script("train.py", *DISTRIBUTED, JAX_NUM_PROCESSES="many")
    assert (result.returncode, result.stderr) == (2, "error: JAX_NUM_PROCESSES is 'many'; expected an integer\n")


def test_the_files_for_clusters_are_well_formed() -> None:
    script, (service, job) = ROOT / "docs/cluster/slurm.sh", yaml.safe_load_all((ROOT / KUBERNETES).read_text())
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck"):
        subprocess.run(["shellcheck", script], check=True)
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    values = {entry["name"]: entry.get("value") for entry in container["env"]}
    assert values.keys() == {"JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"}
    assert int(values["JAX_NUM_PROCESSES"]) == job["spec"]["completions"] == job["spec"]["parallelism"]
    names = [service["metadata"]["name"], pod["subdomain"], service["spec"]["selector"]["job-name"]]
    assert {*names} == {job["metadata"]["name"]}
    assert values["JAX_COORDINATOR_ADDRESS"] == "{0}-0.{0}:1234".format(*names)
    assert container["command"][0] == "longformer-train" and "--distributed" in container["command"]
    (rule,) = job["spec"]["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["containerName"] == container["name"] and pod["restartPolicy"] == "Never"


# Every line is what a process is refused for, in the order of the cases.
REFUSED = """
import dataclasses, sys
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch
import jax
import numpy as np
port, index, folder = sys.argv[1:]
index, folder = int(index), Path(folder)
jax.distributed.initialize(f"localhost:{port}", 2, index)
from longformer_jax.files import locked
from longformer_jax.models import char_lm
from longformer_jax.processes import check_same, together, versions
from longformer_jax.training import CharLMExperiment, DataConfig, train, train_seeds
from longformer_jax.training.step import abstract_params
from tests.training.tiny import CONFIG

def refused(what, *patches):
    with ExitStack() as stack:
        for each in patches:
            stack.enter_context(each)
        try:
            what()
            print("- done")
        except Exception as error:
            print("-", type(error).__name__, error)

def in_process_1(*patch_arguments, **patch_values):
    return patch(*patch_arguments, **patch_values) if index else ExitStack()

def fails(error):
    return in_process_1("longformer_jax.training.CharLMExperiment.load_data", side_effect=error)

run = folder / "run"
(folder / f"text{index}").write_bytes(bytes(range(97 + index, 107)) * 500)
text = lambda name: dataclasses.replace(CONFIG, data=DataConfig(path=str(folder / name)))
refused(lambda: train(dataclasses.replace(CONFIG, seed=index, log_interval=4 + index), run))
refused(lambda: train(CONFIG, folder / f"run{index}"))
refused(lambda: train(text(f"text{index}"), run))
refused(lambda: train(text(f"text{2 * index}"), run))
refused(lambda: train_seeds(CONFIG, run, 1 + index))
older = lambda: versions() | {"version of jax": "0.1"}
refused(lambda: train(CONFIG, run), in_process_1("longformer_jax.training.loop.versions", older))
refused(lambda: train(CONFIG, run), in_process_1("longformer_jax.files._LOCK", ".another"))
refused(lambda: train(CONFIG, run), fails(PermissionError(13, "Permission denied", "text")))
refused(lambda: train(CONFIG, run), fails(KeyError("bug")))
refused(lambda: train(CONFIG, run), locked("workdir", run) if index == 0 else ExitStack())
weights = lambda config: jax.tree.map(lambda x: np.full(x.shape, index, x.dtype), abstract_params(config))
refused(lambda: train(CONFIG, run), patch.object(CharLMExperiment, "pretrained_params", weights))
rounded = lambda given, away, width: np.nextafter(np.eye(width) if given is None else given, np.float32(9))
refused(lambda: train(CONFIG, folder / "rounded"), in_process_1("longformer_jax.models.char_lm.further", rounded))
jax.clear_caches()  # of layers traced with that
short = dataclasses.replace(CONFIG, phases=(dataclasses.replace(CONFIG.phases[0], steps=2),), eval_interval=0)
refused(lambda: train(short, folder / "saved"))
damaged = in_process_1("longformer_jax.checkpoints.is_unchanged", lambda *_: False)
refused(lambda: train(short, folder / "saved"), damaged)

def nested():
    with together():
        if index:
            raise FileNotFoundError(2, "No such file", "only here")
        with together():  # which process 1 does not come to
            pass
refused(nested)
refused(lambda: check_same({"round": 1}))  # both are in the same one
"""


@pytest.mark.slow
def test_what_one_process_does_otherwise_is_refused_in_all(start_python: Callable, tmp_path: Path) -> None:
    both = [start_python("-c", REFUSED, port, i, tmp_path) for port in [free_port()] for i in (0, 1)]
    printed = [process.communicate(timeout=600) for process in both]
    lines = [[line[2:] for line in output.splitlines() if line.startswith("- ")] for output, _ in printed]
    same = "; expected the same in all processes of a run"
    differ = "AgreedInputError processes 0 and 1 differ: {}" + same
    expected = [
        differ.format("config.seed is 0 and 1, config.log_interval is 4 and 5"),
        differ.format(f"workdir is '{tmp_path}/run0' and '{tmp_path}/run1'"),
        differ.format("digest of the data is '[0-9a-f]+' and '[0-9a-f]+'"),
        f"AgreedInputError process 1: data: path is '{tmp_path}/text2', which is missing; expected a file",
        differ.format("seeds is 1 and 2"),
        differ.format("version of jax is '[0-9.]+' and '0.1'"),
        f"AgreedInputError process 1: workdir is '{tmp_path}/run', which is not the directory of process .*",
        r"AgreedOSError \[Errno 13\] Permission denied; in process 1: 'text'",
        None,
        f"AgreedInputError workdir is '{tmp_path}/run', which is in use by process .*",
        differ.format("weights of init is '[0-9a-f]+' and '[0-9a-f]+'"),
        differ.format("program is '[0-9a-f]+' and '[0-9a-f]+'"),
        "done",
        f"AgreedInputError process 1: checkpoint '{tmp_path}/saved/checkpoints/2' is damaged: .*",
        r"AgreedOSError \[Errno 2\] No such file; in process 1: 'only here'",
        "done",
    ]
    assert [len(said) for said in lines] == [len(expected)] * 2, printed
    for index, pattern in enumerate(expected):
        zero, one = (said[index] for said in lines)
        if pattern is None:
            assert (zero, one) == ("ProcessError process 1 of the run cannot go on, and says why", "KeyError 'bug'")
        else:
            assert zero == one and re.fullmatch(pattern, zero), zero


def start_all(start: Callable, count: int, workdir: Path, *arguments: str, **environment: str) -> list[Popen[str]]:
    command = [CONFIG_FLAG, f"--workdir={workdir}", "--distributed", f"--coordinator=localhost:{free_port()}"]
    command += [f"--num_processes={count}", *arguments]
    return [start("train.py", *command, f"--process_id={index}", **environment) for index in range(count)]


def ends(processes: Sequence[Popen[str]]) -> list[tuple[int, str]]:
    """Their exit statuses, and what they print to standard error."""
    return [(errors := process.communicate(timeout=600)[1], (process.returncode, errors))[1] for process in processes]


@pytest.mark.slow
def test_processes_that_the_environment_introduces_end_alike(start_python: Callable, tmp_path: Path) -> None:
    introduced = {"JAX_COORDINATOR_ADDRESS": f"localhost:{free_port()}", "JAX_NUM_PROCESSES": "2"}
    command = [CONFIG_FLAG, f"--workdir={tmp_path / 'run'}", "--distributed"]
    both = [
        start_python("train.py", *command, f"--config.seed={index}", JAX_PROCESS_ID=str(index), **introduced)
        for index in (0, 1)
    ]
    sentence = "processes 0 and 1 differ: config.seed is 0 and 1; expected the same in all processes of a run"
    assert ends(both) == [(2, f"error: {sentence}\n"), (2, "")]


@pytest.mark.slow
def test_two_processes_match_one(start_python: Callable, run_python: Callable, tmp_path: Path) -> None:
    """Where each has its own sequences, and where each has its part of all of them."""
    one_phase = ["--config.phases[1].steps=1"]
    flags = [*one_phase, "--config.phases[0].sequences_per_device=8", f"--workdir={tmp_path / 'one'}"]
    result = run_python("train.py", CONFIG_FLAG, *flags)
    assert result.returncode == 0, result.stderr
    one = read_metrics(tmp_path / "one" / "metrics.jsonl")
    for name, sizes, most in (("sequences", {"data": 2, "fsdp": 2}, 2), ("parts", {"data": 1, "sequence": 4}, 8)):
        mesh = [f"--config.mesh.{axis}={size}" for axis, size in sizes.items()]
        mesh.append(f"--config.phases[0].sequences_per_device={most}")
        both = start_all(start_python, 2, tmp_path / name, *one_phase, *mesh, JAX_NUM_CPU_DEVICES="2")
        assert ends(both) == [(0, "")] * 2
        two = read_metrics(tmp_path / name / "metrics.jsonl")
        assert [(record["split"], record["step"]) for record in one] == [
            (record["split"], record["step"]) for record in two
        ]
        for expected, found in zip(one, two, strict=True):
            assert found["bpc"] == pytest.approx(expected["bpc"], rel=2e-5)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_a_run_outlives_its_processes(start_python: Callable, tmp_path: Path) -> None:
    """Four, two and one go on with it, after SIGTERM, Ctrl-C and the sudden death of the last or the first."""
    flags = ["--config.phases[0].steps=1000000", "--config.eval_interval=0", "--config.checkpoint_interval=20"]
    last = 0

    def go_on(count: int, steps: bool = True) -> list[Popen[str]]:
        """Processes that have gone on from step `last`, and have saved since, or are about to take steps."""
        processes = start_all(start_python, count, tmp_path, *flags)
        line = read_until(processes[0], "9,024 parameters")
        assert line.rstrip().endswith(f"continuing after step {last}" if last else "from the beginning")
        if steps:
            read_until(processes[0], f"step {last + 60 - last % 20}/")
        return processes

    for count, stopped, number in ((4, 2, signal.SIGTERM), (2, 1, signal.SIGINT)):
        processes = go_on(count, steps=count == 4)
        processes[stopped].send_signal(number)
        assert ends(processes) == [(0, "")] * count
        (*_, last) = checkpoints(tmp_path)

        processes = go_on(count)
        victim = processes.pop(0 if count == 2 else 3)
        victim.kill()
        who = f"process {0 if count == 2 else 3} of the run has ended or cannot be reached"
        line = f"error: {who}; the same command goes on from the last checkpoint\n"
        assert ends(processes) == [(1, line)] * (count - 1)
        victim.communicate()
        (*_, last) = checkpoints(tmp_path)
    (process,) = go_on(1)
    process.send_signal(signal.SIGTERM)
    assert ends([process]) == [(0, "")]


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_write_ends_all(start_python: Callable, tmp_path: Path) -> None:
    def start(*arguments: object, **environment: str) -> Popen[str]:
        limits = ["-c", LIMITED, 9000] if arguments[-1] == "--process_id=1" else []
        return start_python(*limits, *arguments, **environment, JAX_ENABLE_COMPILATION_CACHE="false")

    flags = ["--config.mesh.fsdp=2", "--config.phases[0].steps=1000000", "--config.eval_interval=0"]
    zero, one = ends(start_all(start, 2, tmp_path, *flags))
    who = "error: process 1 of the run has ended or cannot be reached"
    assert zero == (1, f"{who}; the same command goes on from the last checkpoint\n")
    place = f"'{tmp_path}/checkpoints/5'"
    line = f"error: {place} cannot be read or written (File too large; there is no checkpoint yet)"
    assert one == (1, f"{line}\n")


# Two machines, as far as the network and the file system go: the second has an address of its own, and what it mounts
# only it can see.
TWO_MACHINES = r"""
set -e
ip link set lo up
unshare -nm sleep 600 &
other=$!
trap "kill $other" EXIT
on_other="nsenter -t $other -n -m"
while [ "$(readlink /proc/self/ns/net)" = "$(readlink /proc/$other/ns/net)" ]; do sleep 0.1; done
ip link add one type veth peer name two netns $other
ip address add 10.77.0.1/24 dev one
ip link set one up
$on_other sh -c "ip link set lo up; ip address add 10.77.0.2/24 dev two; ip link set two up"
run() {
    for i in 0 1 2 3; do
        [ $i -lt 2 ] && on="" || on=$on_other
        $on "$@" --process_id=$i > $OUT/output.$i 2> $OUT/errors.$i &
        eval "process$i=$!"
    done
    statuses=""
    for i in 0 1 2 3; do
        status=0
        eval "wait \$process$i" || status=$?
        statuses="$statuses $status"
    done
    echo $statuses
    cat $OUT/errors.*
}
$on_other mount -t tmpfs none $WORKDIR
run "$@"
$on_other umount $WORKDIR
run "$@"
"""


@pytest.mark.slow
@pytest.mark.exhaustive
def test_two_machines(compilation_cache: Path, tmp_path: Path) -> None:
    """Two processes on each, in network namespaces, in which the machine's name means 127.0.0.1 at best, and a workdir
    may be another one."""
    alone = ["unshare", "--map-root-user", "--net", "--mount"]
    possible = shutil.which("unshare") and shutil.which("ip") and shutil.which("nsenter")
    try:
        subprocess.run([*alone, "ip", "link", "add", "one", "type", "veth", "peer", "name", "two"], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this machine makes no network namespaces: {error}, {possible=}")
    workdir = tmp_path / "run"
    workdir.mkdir()
    command = [sys.executable, ROOT / "train.py", f"--config={ROOT / 'tests/training/tiny.py'}", f"--workdir={workdir}"]
    command += ["--distributed", "--coordinator=10.77.0.1:5555", "--num_processes=4", "--join_timeout=60"]
    short = ["--config.phases[0].steps=2", "--config.phases[1].steps=1", "--config.eval_interval=0"]
    ran = subprocess.run(
        [*alone, "sh", "-c", TWO_MACHINES, "sh", *command, *short],
        env={**os.environ, "OUT": str(tmp_path), "WORKDIR": str(workdir), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    refused, sentence, *ended = ran.stdout.splitlines()
    assert refused == "2 2 2 2", ran
    pattern = (
        f"error: process 2: workdir is '{workdir}', which is not the directory of process .* on .*; expected one that"
    )
    assert re.match(pattern, sentence)
    assert ended == ["0 0 0 0"], ran
    assert checkpoints(workdir) == [3]
