"""A run folder keeps what it says it keeps: under SIGKILL, on a full disk, and with damaged files."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbayes.errors import UserError
from fewbayes.files import atomic
from fewbayes.files.atomic import atomic_folder, atomic_write
from fewbayes.runs import provenance
from fewbayes.runs.checkpoints import verify_checkpoint
from fewbayes.runs.folder import RunFolder, read_metrics
from fewbayes.runs.layout import Best, Manifest, read_best
from fewbayes.runs.provenance import environment

ROUNDS = 15  # of killing at random moments
FINGERPRINT = {"seed": 0, "learning_rate": 5e-6}

WRITER = """
import hashlib, itertools, os, sys
from fewbayes.files.atomic import atomic_write
from fewbayes.runs.folder import RunFolder

def content(step, name):
    return hashlib.sha256(f"{step} {name}".encode()).digest() * 8_000

def write(step):
    def writer(folder):
        (folder / "unet").mkdir()
        for name in ("optimizer.bin", "unet/weights.bin"):
            with open(folder / name, "wb") as file:
                for part in range(4):
                    file.write(content(step, name)[part * 64_000 : (part + 1) * 64_000])
    return writer
"""

TRAINER = (
    WRITER
    + """
run = RunFolder(sys.argv[1]).open({"seed": 0}, {"seed": 0})
newest = run.newest_checkpoint()
begin = newest.step if newest else 0
run.resume_from(begin)
print("resumed", begin, flush=True)
for step in itertools.count(begin + 1):
    run.log(step, "loss", 1 / step)
    atomic_write(run.path / "reference.bin", content(step, "reference"))
    run.write_checkpoint(step, write(step), total_limit=2)
    print(step, flush=True)
"""
)


def content(step: int, name: str) -> bytes:
    """What the child writes."""
    return hashlib.sha256(f"{step} {name}".encode()).digest() * 8_000


def child(code: str, *arguments: object, **keys) -> subprocess.Popen:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **keys)


def run_at(path, **keys) -> RunFolder:
    return RunFolder(path, **keys).open(FINGERPRINT, FINGERPRINT)


@pytest.fixture
def run(tmp_path):
    run = run_at(tmp_path / "OUT", say=[].append)
    yield run
    run.close()


def write_bytes(data: bytes = b"weights"):
    return lambda folder: (folder / "weights.bin").write_bytes(data)


def names(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir()}


def leftovers(path: Path) -> list[str]:
    return [str(entry) for entry in path.rglob(f"{atomic.STAGING}*")]


def assert_whole(path: Path, newest_announced: int) -> int:
    """Nothing announced is lost, everything under its own name is whole; the newest step."""
    said: list[str] = []
    run = RunFolder(path, say=said.append)
    newest = run.newest_checkpoint()
    assert not said
    for checkpoint in run.checkpoints():
        step = verify_checkpoint(checkpoint).step
        for name in ("optimizer.bin", "unet/weights.bin"):
            assert (checkpoint / name).read_bytes() == content(step, name)
    step = newest.step if newest else 0
    assert step >= newest_announced
    if (path / "metrics.jsonl").exists():
        assert [row["step"] for row in read_metrics(path / "metrics.jsonl")][:step] == list(range(1, step + 1))
    return step


# --- SIGKILL ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def quick_disk(tmp_path):
    """A folder in memory where there is one: what a kill leaves does not depend on the disk, only the time does."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


def test_killed_at_random_moments_the_newest_whole_checkpoint_loads(quick_disk):
    moments = random.Random(0)
    path = quick_disk / "OUT"
    newest, inside = 0, 0
    for _ in range(ROUNDS):
        process = child(TRAINER, path)
        assert process.stdout
        assert process.stdout.readline() == f"resumed {newest}\n"
        time.sleep(moments.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        announced, errors = process.communicate()
        assert process.returncode == -signal.SIGKILL, errors
        inside += bool(leftovers(path))
        whole_lines = [line for line in announced.split("\n")[:-1] if line]
        newest = assert_whole(path, max([newest, *map(int, whole_lines)]))
        assert (path / "manifest.json").exists()
    assert newest > 0
    assert inside > 0, "no kill fell into a write, so this run showed nothing"
    run = RunFolder(path).open({"seed": 0}, {"seed": 0})
    assert run.previous_status == "running"
    assert not leftovers(path)
    assert len(run.manifest.starts) == ROUNDS + 1
    run.close()


KILLED_AT = (
    WRITER
    + """
import signal

def kill_at(event, arguments):
    global left
    touched = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree", "os.truncate")
    if touched and path in str(arguments[0]):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def go_on():
    sys.addaudithook(kill_at)
    run = RunFolder(path).open({"seed": 0}, {"seed": 0})
    run.resume_from(run.newest_checkpoint().step)
    run.log(2, "loss", 0.5)
    run.write_checkpoint(2, write(2), total_limit=1)
    run.manifest_update(note="x")
    run.finish()

for line in sys.stdin:
    path, left = line.split()[0], int(line.split()[1])
    child = os.fork()
    if not child:
        go_on()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
)


def test_killed_before_each_touch_of_the_disk_nothing_whole_is_lost(quick_disk):
    begun, path = quick_disk / "begun", quick_disk / "OUT"
    first = WRITER + "run = RunFolder(sys.argv[1]).open({'seed': 0}, {'seed': 0}); run.log(1, 'loss', 1.0)\n"
    _, errors = child(first + "run.write_checkpoint(1, write(1))", begun).communicate()
    assert not errors
    forker = child(KILLED_AT, stdin=subprocess.PIPE)
    assert forker.stdin
    assert forker.stdout
    ends, code = [], -signal.SIGKILL
    while code == -signal.SIGKILL:
        shutil.copytree(begun, path)
        forker.stdin.write(f"{path} {len(ends) + 1}\n")
        forker.stdin.flush()
        code = int(forker.stdout.readline())
        ends.append(assert_whole(path, 1))
        RunFolder(path).open({"seed": 0}, {"seed": 0}).close()  # always continues
        assert not leftovers(path)
        shutil.rmtree(path)
    forker.communicate()
    assert code == 0  # the last one met no kill
    assert len(ends) > 40
    assert ends == sorted(ends)
    assert set(ends) == {1, 2}


# --- full disks -------------------------------------------------------------------------------------------------------

FULL = (
    WRITER
    + """
import resource
run = RunFolder(sys.argv[1]).open({"seed": 0}, {"seed": 0})
run.write_checkpoint(1, write(1))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    run.write_checkpoint(2, write(2), total_limit=1)
except OSError as error:
    print(error.errno, error.strerror)
print(sorted(os.listdir(run.path)))
print(run.newest_checkpoint().step)
"""
)


def test_a_file_that_cannot_be_written_out_costs_no_older_checkpoint(tmp_path):
    process = child(FULL, tmp_path / "OUT")
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    message, listing, newest = output.splitlines()
    assert message.startswith(f"{errno.EFBIG} could not write")
    assert "checkpoint-2; older checkpoints are untouched: File too large. Free some space" in message
    assert "checkpoint-1" in listing
    assert atomic.STAGING not in listing
    assert "checkpoint-2" not in listing
    assert newest == "1"


@pytest.fixture
def small_disk(tmp_path):
    """A disk of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting is not allowed here")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_full_disk_costs_no_older_checkpoint_and_is_called_by_its_name(small_disk):
    from safetensors.numpy import save_file

    run = run_at(small_disk / "OUT")
    run.write_checkpoint(1, write_bytes(b"x" * 300_000))
    writers = {
        "plain": write_bytes(b"y" * 900_000),
        "many files": lambda folder: [(folder / f"{i}.bin").write_bytes(b"y" * 90_000) for i in range(10)],
        "safetensors": lambda folder: save_file({"w": np.zeros(225_000, np.float32)}, folder / "w.safetensors"),
    }
    for writer in writers.values():
        with pytest.raises(OSError, match=r"checkpoint-2; older checkpoints are untouched: .*Free some space") as full:
            run.write_checkpoint(2, writer, total_limit=1)
        assert full.value.errno == errno.ENOSPC
        assert [path.name for path in run.checkpoints()] == ["checkpoint-1"]
        assert not leftovers(run.path)
    assert verify_checkpoint(run.path / "checkpoint-1").step == 1
    with pytest.raises(OSError, match="could not write the pipeline"):
        run.write_pipeline(writers["plain"])
    run.write_checkpoint(2, write_bytes(b"z" * 300_000), total_limit=1)  # room again
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2"]
    run.close()


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_full_disk_leaves_whole_rows_and_the_old_manifest(small_disk):
    run = run_at(small_disk / "OUT")
    before = run.manifest
    run.log(0, "loss", 0.3)
    fill = small_disk / "fill"
    with contextlib.suppress(OSError), open(fill, "wb", buffering=0) as file:
        while file.write(b"x" * 1024):
            pass
    with pytest.raises(OSError, match="could not write a row"):
        run.log(1, "loss", 0.1, text="x" * 10_000)
    assert run.metrics() == [{"step": 0, "metric": "loss", "value": 0.3}]
    with pytest.raises(OSError, match="No space"):
        run.manifest_update(long="y" * 10_000)
    assert run.manifest == before
    fill.unlink()
    run.log(100, "loss", 0.2)
    assert [row["step"] for row in run.metrics()] == [0, 100]
    run.close()


# --- damaged checkpoints ----------------------------------------------------------------------------------------------


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


DAMAGES = {
    "a flipped bit": lambda folder: flip(folder / "weights.bin"),
    "a cut file": lambda folder: os.truncate(folder / "weights.bin", 3),
    "an empty file": lambda folder: os.truncate(folder / "weights.bin", 0),
    "a missing file": lambda folder: (folder / "weights.bin").unlink(),
    "a missing state": lambda folder: (folder / "trainer_state.json").unlink(),
    "a cut state": lambda folder: os.truncate(folder / "trainer_state.json", 20),
    "a changed step": lambda folder: (folder / "trainer_state.json").write_text(
        (folder / "trainer_state.json").read_text().replace('"step": 2', '"step": 3')
    ),
    "nothing left": lambda folder: shutil.rmtree(folder) or folder.mkdir(),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_torn_checkpoint_is_passed_over_and_said_and_can_be_written_again(tmp_path, damage):
    said: list[str] = []
    run = run_at(tmp_path / "OUT", say=said.append)
    for step in (1, 2):
        run.write_checkpoint(step, write_bytes(b"%d" % step * 100), state={"ema_steps": step})
    damage(run.path / "checkpoint-2")
    newest = run.newest_checkpoint()
    assert newest
    assert (newest.step, newest.state) == (1, {"ema_steps": 1})
    assert len(said) == 1
    assert "skipped a torn checkpoint" in said[0]
    assert "checkpoint-2" in said[0]
    run.write_checkpoint(2, write_bytes(b"again"))
    newest = run.newest_checkpoint()
    assert newest
    assert newest.step == 2
    assert not leftovers(run.path)
    run.close()


def test_without_a_whole_checkpoint_there_is_none(run):
    assert run.newest_checkpoint() is None
    (run.path / "checkpoint-5").mkdir()
    assert run.newest_checkpoint() is None


def test_newest_is_by_number_and_not_by_name(run):
    for step in (9, 10, 100, 99):
        run.write_checkpoint(step, write_bytes())
    newest = run.newest_checkpoint()
    assert newest.step == 100


def test_only_the_newest_whole_checkpoints_are_kept(run):
    for step in range(1, 6):
        run.write_checkpoint(step, write_bytes(), total_limit=2)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-4", "checkpoint-5"]


def test_a_torn_checkpoint_does_not_count_among_those_kept(run):
    for step in (1, 2, 3):
        run.write_checkpoint(step, write_bytes())
    os.truncate(run.path / "checkpoint-3" / "weights.bin", 1)
    run.write_checkpoint(4, write_bytes(), total_limit=2)
    assert [path.name for path in run.checkpoints()] == ["checkpoint-2", "checkpoint-4"]


def test_a_writer_that_fails_leaves_nothing_and_removes_nothing(run):
    run.write_checkpoint(1, write_bytes())
    before = names(run.path)

    def failing(folder):
        (folder / "weights.bin").write_bytes(b"half")
        raise KeyError("unet")

    with pytest.raises(KeyError):
        run.write_checkpoint(2, failing, total_limit=1)
    assert names(run.path) == before


def test_a_whole_checkpoint_is_not_written_twice(run):
    run.write_checkpoint(1, write_bytes(b"first"))
    run.write_checkpoint(1, write_bytes(b"second"))
    assert (run.path / "checkpoint-1" / "weights.bin").read_bytes() == b"first"


def test_a_checkpoint_carries_the_hash_of_each_file(run):
    path = run.write_checkpoint(7, write_bytes())
    state = json.loads((path / "trainer_state.json").read_text())
    assert state["files"] == {"weights.bin": {"bytes": 7, "sha256": atomic.file_sha256(path / "weights.bin")}}


# --- whose folder -----------------------------------------------------------------------------------------------------


def test_the_same_settings_continue_a_run(tmp_path):
    first = run_at(tmp_path / "OUT")
    assert not first.resumed
    first.finish("failed", error="disk")
    again = run_at(tmp_path / "OUT")
    assert again.resumed
    assert again.previous_status == "failed"
    assert again.manifest.status == "running"
    assert again.manifest.started == first.manifest.started
    assert len(again.manifest.starts) == 2
    again.close()


def test_another_run_is_refused_naming_what_differs_and_left_alone(tmp_path):
    run_at(tmp_path / "OUT").close()
    before = {path: path.read_bytes() for path in (tmp_path / "OUT").iterdir()}
    with pytest.raises(UserError, match=r"holds another run \(seed: 0 there, 1 now\)"):
        RunFolder(tmp_path / "OUT").open({}, FINGERPRINT | {"seed": 1})
    assert {path: path.read_bytes() for path in (tmp_path / "OUT").iterdir()} == before


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match=r"holds no run \(found thesis\.tex\)"):
        run_at(tmp_path)
    assert names(tmp_path) == {"thesis.tex"}


def test_inspecting_a_folder_touches_nothing(tmp_path):
    assert RunFolder(tmp_path / "NEW").inspect(FINGERPRINT) == Manifest()
    assert names(tmp_path) == set()
    run_at(tmp_path / "OUT").close()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert RunFolder(tmp_path / "OUT").inspect(FINGERPRINT).status == "running"
    with pytest.raises(UserError, match="another run"):
        RunFolder(tmp_path / "OUT").inspect(FINGERPRINT | {"seed": 1})
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_the_newest_step_is_that_of_the_newest_checkpoint_with_all_its_bytes(run):
    assert run.newest_step() is None
    for step in (5, 10):
        run.write_checkpoint(step, write_bytes())
    assert run.newest_step() == 10
    torn = next(path for path in (run.path / "checkpoint-10").iterdir() if path.name != "trainer_state.json")
    torn.write_bytes(b"")
    assert run.newest_step() == 5


def test_a_json_file_of_the_run_is_whole_and_without_nan(run):
    run.write_json("posterior.json", [{"kl": math.nan, "name": "a"}])
    assert json.loads((run.path / "posterior.json").read_text()) == [{"kl": None, "name": "a"}]


def test_a_file_is_no_run_folder(tmp_path):
    (tmp_path / "OUT").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        run_at(tmp_path / "OUT")


def test_a_folder_that_cannot_be_written_is_refused():
    with pytest.raises(UserError, match="output_dir /proc/OUT cannot be written"):
        run_at("/proc/OUT")


def test_a_damaged_manifest_is_refused_and_left_alone(tmp_path):
    run_at(tmp_path / "OUT").close()
    (tmp_path / "OUT" / "manifest.json").write_text("{")
    with pytest.raises(UserError, match=r"manifest\.json is not JSON.*restore it"):
        run_at(tmp_path / "OUT")
    assert (tmp_path / "OUT" / "manifest.json").read_text() == "{"


def test_two_processes_do_not_train_in_one_folder(tmp_path):
    process = child(TRAINER, tmp_path / "OUT")
    assert process.stdout
    process.stdout.readline()
    try:
        with pytest.raises(UserError, match="another process is training"):
            RunFolder(tmp_path / "OUT").open({"seed": 0}, {"seed": 0})
    finally:
        process.kill()
        process.communicate()
    RunFolder(tmp_path / "OUT").open({"seed": 0}, {"seed": 0}).close()


def test_opening_sweeps_what_dead_writers_left_and_spares_the_living(tmp_path):
    sleeper = child("import time; print(flush=True); time.sleep(60)")
    assert sleeper.stdout
    sleeper.stdout.readline()
    path = tmp_path / "OUT"
    run_at(path).close()
    living = f"{atomic.STAGING}{atomic._process(sleeper.pid)}-0-report.html"
    (path / living).write_text("half a page")
    reused_pid = f"{atomic.STAGING}{atomic._host()}-{os.getpid()}-1-0-checkpoint-3"
    (path / reused_pid / "unet").mkdir(parents=True)
    other_machine = f"{atomic.STAGING}deadbeef-1-1-0-x"
    (path / "samples" / "step-000001").mkdir(parents=True)
    (path / "samples" / other_machine).mkdir()
    (path / "samples" / "step-000001" / f"{atomic.STAGING}odd").write_text("x")
    run_at(path).close()
    assert [Path(left).name for left in leftovers(path)] == [living]
    sleeper.kill()
    sleeper.communicate()
    run_at(path).close()
    assert not leftovers(path)


def test_a_kill_before_the_first_manifest_leaves_a_folder_that_can_be_begun(tmp_path):
    path = tmp_path / "OUT"
    path.mkdir()
    (path / ".lock").touch()
    (path / f"{atomic.STAGING}deadbeef-1-1-0-manifest.json").write_text("{")
    run_at(path).close()
    assert names(path) == {".lock", "manifest.json", "config.yaml"}


def test_the_config_is_written_as_given_or_as_json(tmp_path):
    RunFolder(tmp_path / "a").open({"seed": 3}, {}, config_text="seed: 3\n").close()
    assert (tmp_path / "a" / "config.yaml").read_text() == "seed: 3\n"
    RunFolder(tmp_path / "b").open({"seed": 3}, {}).close()
    assert json.loads((tmp_path / "b" / "config.yaml").read_text()) == {"seed": 3}


def test_a_fingerprint_agrees_with_itself_after_json(tmp_path):
    fingerprint = {"sizes": (1, 2), "path": Path("x"), "none": None, "rate": 5e-324}
    RunFolder(tmp_path / "OUT").open({}, fingerprint).close()
    assert RunFolder(tmp_path / "OUT").open({}, fingerprint).resumed


# --- metrics ----------------------------------------------------------------------------------------------------------


def test_rows_come_back_in_order_with_their_keys(run):
    run.log(0, "image_similarity", 0.5, weights="raw", prompt="ä\n")
    run.log(1, "loss", np.float32(0.25))
    assert run.metrics() == [
        {"step": 0, "metric": "image_similarity", "value": 0.5, "weights": "raw", "prompt": "ä\n"},
        {"step": 1, "metric": "loss", "value": 0.25},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_a_number_that_is_not_finite_is_written_as_null(run, value):
    run.log(1, "loss", value, limit=value)
    assert (run.path / "metrics.jsonl").read_text() == '{"step": 1, "metric": "loss", "value": null, "limit": null}\n'


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 10), st.integers(0, 10_000))
def test_a_resumed_run_has_the_rows_up_to_its_step_wherever_the_file_was_torn(steps, resumed_at, cut):
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as folder:
        first = run_at(folder)
        for step in steps:
            first.log(step, "loss", step / 7)
        first.close()
        file = Path(folder) / "metrics.jsonl"
        file.touch()
        kept = file.read_bytes()[:cut]
        file.write_bytes(kept)
        assert len(read_metrics(file)) == kept.count(b"\n")
        again = run_at(folder)
        again.resume_from(resumed_at)
        again.log(11, "loss", 0.0)
        whole = steps[: kept.count(b"\n")]
        assert [row["step"] for row in again.metrics()] == [step for step in whole if step <= resumed_at] + [11]
        again.close()


def test_a_damaged_row_in_the_middle_is_named(run):
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n{"ste\n{"step": 3}\n')
    with pytest.raises(UserError, match="line 2 is not JSON"):
        run.metrics()


# --- stages and the best model ----------------------------------------------------------------------------------------


def test_judgements_are_appended_torn_and_dropped_like_metrics(run):
    for step in (1, 2, 3):
        run.log_stage({"step": step, "stage": "good", "evidence": ("ä",)})
    file = run.path / "stages.jsonl"
    file.write_bytes(file.read_bytes()[:-5])
    run.close()
    again = run_at(run.path)
    assert again.stages() == [{"step": step, "stage": "good", "evidence": ["ä"]} for step in (1, 2)]
    again.resume_from(1)
    assert [row["step"] for row in again.stages()] == [1]
    again.close()


def write_best(run, text: str, step: int) -> None:
    run.write_best(lambda folder: (folder / "model").write_text(text), {"step": step})


def test_the_best_model_is_replaced_whole_and_a_failure_leaves_the_old_one(run):
    write_best(run, "old", 1)
    write_best(run, "new", 2)
    with pytest.raises(TypeError):
        write_best(run, None, 3)  # type: ignore
    assert names(run.path / "best") == {"model", "best.json"}
    assert (run.path / "best/model").read_text() == "new"
    assert json.loads((run.path / "best/best.json").read_text()) == {"step": 2}


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="no system call for it")
def test_at_no_moment_is_there_no_best_model(tmp_path):
    """Another process looks as often as it can, while it is replaced again and again."""
    if not atomic._exchanged(*_two_folders(tmp_path)):
        pytest.skip("this file system cannot exchange folders")
    run = run_at(tmp_path / "OUT")
    write_best(run, "x" * 1000, 0)
    looker = child(LOOKER, run.path)
    assert looker.stdout.readline() == "looking\n"
    for step in range(100):
        write_best(run, "x" * 1000, step)
    (run.path / "stop").touch()
    said, errors = looker.communicate(timeout=60)
    assert (said, errors) == ("always there\n", "")
    run.close()


LOOKER = """
import os, sys
print("looking", flush=True)
while not os.path.exists(sys.argv[1] + "/stop"):
    os.stat(sys.argv[1] + "/best")
print("always there")
"""


def _two_folders(path: Path) -> list[Path]:
    folders = [path / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
    return folders


def test_a_best_model_that_a_kill_left_between_two_names_is_put_back(run, monkeypatch):
    """Where folders cannot be exchanged: the old one is moved away, and the writer dies before the new one comes."""
    monkeypatch.setattr(atomic, "_exchanged", lambda a, b: False)
    write_best(run, "old", 1)
    write_best(run, "new", 2)
    assert (run.path / "best/model").read_text() == "new"
    run.close()
    os.replace(run.path / "best", run.path / ".tmp-00000000-1-0-7-best")
    run_at(run.path).close()
    assert (run.path / "best/model").read_text() == "new"
    assert not list(run.path.glob(".tmp-*"))


def test_a_best_model_beyond_the_checkpoint_is_renamed_and_goes_when_its_step_comes_again(run):
    assert run.best() is None
    write_best(run, "late", 4)
    aside = run.set_best_aside(4)
    assert (run.best(), read_best(aside), aside.name) == (None, Best(step=4), "best-4")
    write_best(run, "early", 2)
    assert (aside / "model").read_text() == "late"
    write_best(run, "late", 4)
    assert names(run.path) & {"best", "best-4"} == {"best"}


# --- files and folders ------------------------------------------------------------------------------------------------


def test_a_file_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "page.html"
    atomic_write(path, "old ä")
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    code = "import resource as r, sys; from fewbayes.files.atomic import atomic_write\n"
    code += "r.setrlimit(r.RLIMIT_FSIZE, (10, -1)); "
    _, errors = child(code + "atomic_write(sys.argv[1], b'x' * 1000)", path).communicate()
    assert "File too large" in errors
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == {"page.html"}


def test_a_folder_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path):
    path = tmp_path / "samples" / "step-000001"
    for text in ("old", "new"):
        with atomic_folder(path) as staging:
            (staging / "00.png").write_text(text)
            (staging / f"{text}.json").write_text(text)
    with pytest.raises(TypeError), atomic_folder(path) as staging:
        (staging / "00.png").write_text("half") and (staging / "01.png").write_text(None)  # type: ignore
    assert names(path) == {"00.png", "new.json"}
    assert (path / "00.png").read_text() == "new"
    assert names(tmp_path / "samples") == {"step-000001"}


def test_a_new_folder_is_refused_where_it_would_replace_something(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").write_text("x")
    for path, said in (
        (".", "in use"),
        ("..", "in use"),
        ("full", "not an empty folder"),
        ("full/mine", "not an empty"),
    ):
        with pytest.raises(UserError, match=said), atomic_folder(path, new=True):
            pytest.fail("the work was begun")
    with pytest.raises(UserError, match="not an empty folder"), atomic_folder("late/run", new=True):
        (tmp_path / "late/run").write_text("x")  # it has come while we were at work
    assert names(tmp_path / "late") == {"run"}


def test_the_next_command_sweeps_what_a_killed_one_left_of_the_same_name(tmp_path):
    """And nothing else: not another name's, nor what a machine that shares the folder may be writing."""
    dead = child("import os; print(os.getpid())")
    pid = int(dead.communicate()[0])
    ours, other, elsewhere = (
        f"{atomic.STAGING}{host}-{pid}-1-0-{name}"
        for host, name in ((atomic._host(), "out"), (atomic._host(), "other"), ("deadbeef", "out"))
    )
    for name in (ours, other, elsewhere):
        (tmp_path / name).mkdir()
    page = f"{atomic.STAGING}{atomic._host()}-{pid}-1-3-page.html"
    (tmp_path / page).touch()
    with atomic_folder(tmp_path / "out", new=True) as folder:
        (folder / "00.png").touch()
    atomic_write(tmp_path / "page.html", "new")
    assert names(tmp_path) == {other, elsewhere, "out", "page.html"}


def test_a_link_stays_a_link_and_what_it_leads_to_is_filled(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    with atomic_folder(tmp_path / "link", new=True) as staging:
        (staging / "file").write_text("x")
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "disk") == {"file"}


def test_the_part_with_the_result_goes_first_and_comes_last(run, monkeypatch):
    def writer(folder):
        for part in ("text_encoder", "unet"):
            (folder / part).mkdir()
            (folder / part / "adapter_config.json").write_text("{}")

    run.write_pipeline(writer, "unet/adapter_config.json")
    moved = []

    def stopped(part):
        assert not (run.path / "unet").exists()  # what says that all is there is away before anything moves
        moved.append(part.name)

    monkeypatch.setattr(run, "_move_in", stopped)
    run.write_pipeline(writer, "unet/adapter_config.json")
    assert moved == ["text_encoder", "unet"]


def test_a_pipeline_moves_in_beside_the_run_and_again_over_itself(run):
    def pipeline(text):
        def writer(folder):
            (folder / "unet").mkdir()
            (folder / "unet" / f"{text}.safetensors").write_text(text)
            (folder / "model_index.json").write_text(text)

        return writer

    for text in ("first", "second"):
        run.write_pipeline(pipeline(text))
    assert names(run.path / "unet") == {"second.safetensors"}
    assert (run.path / "model_index.json").read_text() == "second"
    assert not leftovers(run.path)


def test_a_pipeline_never_takes_the_place_of_the_runs_own_files(run):
    with pytest.raises(AssertionError):
        run.write_pipeline(lambda folder: (folder / "manifest.json").write_text("x"))
    assert run.manifest.status == "running"


# --- manifest ---------------------------------------------------------------------------------------------------------


def test_the_manifest_is_added_to_and_ends_with_a_status(run):
    run.manifest_update(base_model={"path": Path("tiny"), "sha256": "0"})
    run.finish("done", steps=10)
    manifest = run.manifest
    assert json.loads((run.path / "manifest.json").read_text())["base_model"] == {"path": "tiny", "sha256": "0"}
    assert (manifest.status, manifest.steps) == ("done", 10)
    assert manifest.ended >= manifest.started
    assert manifest.starts[0].command == sys.argv


def test_the_environment_names_versions_and_hardware():
    found = environment(gpu="H200")
    assert found["versions"]["numpy"] == np.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["cores"] >= 1
    assert found["cpu"]
    assert found["gpu"] == "H200"
    json.dumps(found)


def test_the_commit_is_that_of_our_own_checkout_only(tmp_path):
    """Installed into somebody else's repository, the package does not take that repository's commit for its own."""
    package = tmp_path / "lib" / "fewbayes"
    for file in ("__init__.py", "runs/__init__.py", "runs/provenance.py"):
        (package / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(provenance.__file__).parents[1] / file, package / file)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for arguments in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "theirs"]):
        subprocess.run([*git, *arguments], check=True)
    code = "import fewbayes.runs.provenance as p; print(p.__file__, p._commit())"
    environment_ = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment_, check=True)
    assert answer.stdout.split() == [str(package / "runs/provenance.py"), "None"]
    (tmp_path / "src").mkdir()
    package.rename(tmp_path / "src" / "fewbayes")
    for arguments in (["add", "-A"], ["commit", "-qm", "ours"]):
        subprocess.run([*git, *arguments], check=True)
    environment_["PYTHONPATH"] = str(tmp_path / "src")
    environment_["PYTHONDONTWRITEBYTECODE"] = "1"
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment_, check=True)
    assert answer.stdout.split()[1].startswith(head)
