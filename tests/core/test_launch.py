"""Training in several real processes: the same numbers, restarts, and errors in one sentence."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pegboard import launch as launching
from pegboard.errors import InterruptedRunError, PegboardError, PluginError, SettingsError
from pegboard.files import write_json
from pegboard.journal import read_journal
from pegboard.launch import launch
from pegboard.progress import SilentProgress
from pegboard.runs import Run

TWO = ("train.devices=2", "train.checkpoint_every=2")

TOLD = '''"""Note steps and epochs with the process they are told in; act once where `act` says."""

import os
import signal
from pathlib import Path

from pegboard import PegboardError, hookimpl

HERE = Path(__file__).parent


def note(line):
    with (HERE / "told").open("a") as stream:
        stream.write(line + "\\n")


def act(place):
    marker = HERE / "act"
    if not marker.exists():
        return
    wanted, action = marker.read_text().split(": ")
    if wanted != place:
        return
    marker.unlink()
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "fail":
        raise PegboardError("the moon is full", where="hooks.py", remedy="wait a month")
    if action == "break":
        raise ZeroDivisionError("nothing to divide by")
    if action == "wait":
        note("waiting")
        signal.pause()


@hookimpl
def after_step(event):
    note(f"step {event.step} in {event.rank}")
    act(f"step {event.step} in {event.rank}")


@hookimpl
def after_epoch(event):
    note(f"epoch {event.epoch} in {os.environ.get('RANK', '0')}")
'''


UNUSED = """
from pegboard import hookimpl


@hookimpl(wrapper=True)
def build_model():
    from torch import nn

    model = yield
    model.unused = nn.Linear(2, 2)
    return model


@hookimpl(wrapper=True)
def compute_loss(model):
    losses = yield
    # A second number, for people, that nobody minimises.
    return losses | {"size": model.unused.weight.square().mean()}
"""


def train(run: Run) -> dict[str, Any]:
    return launch(run, SilentProgress())


def act_at(run: Run, place: str, action: str) -> None:
    (run.project.folder / "act").write_text(f"{place}: {action}")


def told(run: Run) -> list[str]:
    return (run.project.folder / "told").read_text().splitlines()


def epoch_losses(run: Run) -> list[float]:
    lines = read_journal(run.progress_file)
    return [line["losses"]["loss"] for line in lines if line["kind"] == "epoch"]


def logs_of(run: Run) -> str:
    return "".join(file.read_text() for file in sorted((run.folder / "logs").glob("*.log")))


# --------------------------------------------------------------------------- the same numbers


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_process_and_two_give_the_same_losses(begin: Callable[..., Run], strategy: str) -> None:
    # 25 samples make shares of 13 and 12.
    common = ("model.dropout=0.0", "train.ema_decay=0.9", "train.batch_size=25")
    one = begin(*common, hooks=UNUSED, name="one")
    placed = ("train.devices=2", f"train.strategy={strategy}")
    two = begin(*common, *placed, hooks=UNUSED, name="two")
    facts = train(one)
    again = train(two)
    assert again["world_size"] == 2 and facts["world_size"] == 1
    assert epoch_losses(two) == pytest.approx(epoch_losses(one), rel=1e-6)
    assert again["value"] == facts["value"] and again["best_epoch"] == facts["best_epoch"]
    weights, other = load_file(one.weights_file), load_file(two.weights_file)
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)
    assert logs_of(two).strip() == ""


# --------------------------------------------------------------------------- losing processes


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "precision"), [("ddp", "fp32"), ("fsdp", "fp16")])
def test_a_killed_process_changes_nothing(
    begin: Callable[..., Run], strategy: str, precision: str
) -> None:
    placed = (f"train.strategy={strategy}", f"train.precision={precision}")
    common = (*TWO, *placed, "train.ema_decay=0.9")
    undisturbed = begin(*common, hooks=TOLD, name="undisturbed")
    killed = begin(*common, hooks=TOLD, name="killed")
    assert undisturbed.project.settings.model.model_dump()["dropout"] > 0
    train(undisturbed)
    act_at(killed, "step 8 in 1", "kill")
    facts = train(killed)
    assert facts["steps"] == 15 and facts["value"] > 0.7
    steps = [line for line in told(killed) if line.endswith("in 1")]
    assert steps.count("step 8 in 1") == 2 and steps.count("step 6 in 1") == 1
    assert killed.weights_file.read_bytes() == undisturbed.weights_file.read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_what_two_processes_began_one_ends(begin: Callable[..., Run], strategy: str) -> None:
    common = ("model.dropout=0.0", "train.ema_decay=0.9", "train.checkpoint_every=2")
    undisturbed = begin(*common, hooks=TOLD, name="undisturbed")
    train(undisturbed)
    run = begin(*common, "train.devices=2", f"train.strategy={strategy}", hooks=TOLD)
    act_at(run, "step 8 in 0", "fail")
    with pytest.raises(PegboardError, match="the moon is full"):
        train(run)
    alone = begin(*common, "train.devices=1")
    assert alone.folder == run.folder
    facts = train(alone)
    assert facts["world_size"] == 1
    assert "step 6 in 0" in told(run) and told(run).count("step 6 in 0") == 1
    assert facts["steps"] == 15 and epoch_losses(run) == pytest.approx(epoch_losses(undisturbed))
    weights, other = load_file(undisturbed.weights_file), load_file(run.weights_file)
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=1e-4, atol=1e-6)


# --------------------------------------------------------------------------- hooks and words


@pytest.mark.slow
def test_steps_are_told_in_every_process_and_epochs_in_the_main_one(
    begin: Callable[..., Run],
) -> None:
    said, counted = [], []

    class Said(SilentProgress):
        def say(self, text: str) -> None:
            said.append(text)

        def track(self, items: Any, title: str, total: int | None = None) -> Any:
            for item in items:
                counted.append((title, total))
                yield item

    run = begin("train.devices=2", hooks=TOLD)
    facts = launch(run, Said())
    lines = told(run)
    for rank in (0, 1):
        steps = [line for line in lines if line.endswith(f"in {rank}") and "step" in line]
        assert steps == [f"step {step} in {rank}" for step in range(1, 16)]
    assert [line for line in lines if "epoch" in line] == [f"epoch {n} in 0" for n in range(3)]
    assert [text.split(":")[0] for text in said] == ["epoch 1", "epoch 2", "epoch 3"]
    assert counted == [("train", 15)] * 15
    assert facts == read_journal(run.progress_file)[-1]["facts"]


@pytest.mark.slow
def test_an_error_in_any_process_is_the_users_one_sentence(
    begin: Callable[..., Run], capfd: pytest.CaptureFixture[str]
) -> None:
    run = begin(*TWO, hooks=TOLD)
    act_at(run, "step 3 in 1", "fail")
    with pytest.raises(PegboardError) as caught:
        train(run)
    assert str(caught.value) == "the moon is full (hooks.py); wait a month."
    act_at(run, "step 3 in 1", "break")
    with pytest.raises(PluginError, match=r"hooks\.py.*ZeroDivisionError: nothing to divide by"):
        train(run)
    # An error that would come again is not tried again.
    assert told(run).count("step 3 in 1") == 2
    assert capfd.readouterr() == ("", "")
    # And it is forgotten when the cause is gone.
    assert train(run)["steps"] == 15


@pytest.mark.slow
def test_a_model_that_cannot_be_sharded_is_refused(begin: Callable[..., Run]) -> None:
    scalar = UNUSED.replace("nn.Linear(2, 2)", 'nn.ParameterDict({"weight": nn.Parameter(ONE)})')
    hooks = "import torch\n\nONE = torch.ones(())\n" + scalar
    run = begin("train.devices=2", "train.strategy=fsdp", hooks=hooks)
    with pytest.raises(SettingsError, match=r"fsdp cannot shard.*'unused\.weight'.*ddp"):
        train(run)


@pytest.mark.slow
def test_a_process_that_dies_again_and_again_is_reported(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "MAX_RESTARTS", 1)
    run = begin(*TWO, hooks=TOLD.replace("    marker.unlink()\n", ""))
    act_at(run, "step 3 in 1", "kill")
    with pytest.raises(PegboardError, match="was killed by SIGKILL, 1 restarts included"):
        train(run)
    assert told(run).count("step 3 in 1") == 2


@pytest.mark.parametrize(
    ("exit_codes", "said"),
    [
        ((1, -9), "killed by SIGKILL"),
        ((-15, -9), "killed by SIGKILL"),
        ((-11, 1), "killed by SIGSEGV"),
        ((1, -15), "peer lost"),
        ((1, 1), "peer lost"),
    ],
)
def test_a_killed_process_is_the_cause_and_what_others_say_of_it_is_not(
    begin: Callable[..., Run], exit_codes: tuple[int, ...], said: str
) -> None:
    run = begin()
    error = {"type": "PegboardError", "what": "peer lost", "where": "w", "remedy": "r"}
    write_json(run.folder / "logs" / "error.json", {**error, "traceback": "", "final": False})
    assert said in str(launching._crashed(run, exit_codes))


# --------------------------------------------------------------------------- interruptions


def start(run: Run, *overrides: str) -> subprocess.Popen[str]:
    """Start `pegboard train` in a process group of its own, as a terminal does."""
    command = [sys.executable, "-c", "from pegboard.cli.main import main; main()", "train"]
    return subprocess.Popen(
        [*command, "--project", str(run.project.folder), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def await_line(run: Run, line: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if (run.project.folder / "told").exists() and line in told(run):
            return
        time.sleep(0.05)
    raise AssertionError(f"'{line}' was not told within {seconds} s")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "number"), [(1, signal.SIGTERM), (2, signal.SIGTERM), (2, signal.SIGINT)]
)
def test_an_interrupted_command_says_how_to_go_on_and_does(
    begin: Callable[..., Run], devices: int, number: signal.Signals
) -> None:
    overrides = (f"train.devices={devices}", "train.checkpoint_every=2")
    run = begin(*overrides, hooks=TOLD)
    act_at(run, "step 8 in 0", "wait")
    process = start(run, *overrides)
    await_line(run, "waiting")
    # Ctrl-C reaches the whole group, a termination the process that was started.
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    last = stderr.strip().splitlines()[-1]
    assert "training was interrupted at epoch" in last
    assert last.endswith("run the same command again to resume.")
    assert "Traceback" not in stderr
    assert not run.weights_file.exists()
    again = start(run, *overrides)
    _, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert told(run).count("step 6 in 0") == 1 and told(run).count("step 8 in 0") == 2
    assert run.weights_file.exists()


@pytest.mark.slow
def test_processes_do_not_outlive_the_command_that_was_killed(begin: Callable[..., Run]) -> None:
    run = begin(*TWO, hooks=TOLD)
    act_at(run, "step 8 in 0", "wait")
    process = start(run, *TWO)
    await_line(run, "waiting")
    process.kill()
    process.communicate()
    end = time.monotonic() + 20
    while (left := living(run)) and time.monotonic() < end:
        time.sleep(0.2)
    assert not left


def living(run: Run) -> list[int]:
    """Return the processes that work on a run."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                words = (folder / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if str(run.folder).encode() in words:
                found.append(int(folder.name))
    return found


def test_an_interruption_outside_the_main_thread_needs_no_handlers(
    begin: Callable[..., Run],
) -> None:
    import threading

    facts: list[Any] = []
    run = begin("train.epochs=1")
    thread = threading.Thread(target=lambda: facts.append(train(run)))
    thread.start()
    thread.join()
    assert facts[0]["epochs"] == 1


def test_every_signal_handler_is_put_back(begin: Callable[..., Run]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    run = begin("train.epochs=1", hooks=TOLD)
    train(run)
    with pytest.raises(InterruptedRunError):
        fail_with_sigterm(begin("train.epochs=2"))
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def fail_with_sigterm(run: Run) -> None:
    class Terminated(SilentProgress):
        def say(self, text: str) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    launch(run, Terminated())


# --------------------------------------------------------------------------- several nodes


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


NODE = """
import sys
from pathlib import Path

from pegboard.launch import launch
from pegboard.progress import SilentProgress
from pegboard.project import open_project
from pegboard.runs import Run

if __name__ == "__main__":
    project = open_project(Path(sys.argv[1]), sys.argv[3:])
    facts = launch(Run(project=project, folder=Path(sys.argv[2])), SilentProgress())
    print(facts["world_size"], facts["steps"])
"""


def start_node(
    run: Run, script: Path, *overrides: str, **environment: str
) -> subprocess.Popen[str]:
    command = [sys.executable, str(script), str(run.project.folder), str(run.folder), *overrides]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@pytest.mark.slow
def test_two_nodes_meet_and_train_together(begin: Callable[..., Run], tmp_path: Path) -> None:
    script = tmp_path / "node.py"
    script.write_text(NODE)
    run = begin("model.dropout=0.0", "train.nodes=2", "train.devices=1", hooks=TOLD)
    meeting = {"PEGBOARD_RENDEZVOUS": f"127.0.0.1:{free_port()}"}
    overrides = ("model.dropout=0.0", "train.nodes=2", "train.devices=1")
    nodes = [start_node(run, script, *overrides, **meeting) for _ in range(2)]
    for node in nodes:
        stdout, stderr = node.communicate(timeout=120)
        assert (node.returncode, stdout.split(), stderr) == (0, ["2", "15"], "")
    alone = begin("model.dropout=0.0", name="alone")
    train(alone)
    assert epoch_losses(run) == pytest.approx(epoch_losses(alone), rel=1e-6)
    assert {line.split()[-1] for line in told(run) if "step" in line} == {"0", "1"}


def test_nodes_need_an_address_to_meet_at(begin: Callable[..., Run]) -> None:
    with pytest.raises(SettingsError, match=r"2 nodes need an address.*PEGBOARD_RENDEZVOUS"):
        train(begin("train.nodes=2"))


@pytest.mark.slow
def test_a_node_that_waits_in_vain_says_so(
    begin: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "JOIN_SECONDS", 3)
    monkeypatch.setenv("PEGBOARD_RENDEZVOUS", f"127.0.0.1:{free_port()}")
    with pytest.raises(PegboardError, match=r"the 2 nodes did not meet.*127\.0\.0\.1"):
        train(begin("train.nodes=2", "train.devices=1"))


@pytest.mark.slow
def test_what_torchrun_has_started_is_respected(begin: Callable[..., Run], tmp_path: Path) -> None:
    script = tmp_path / "node.py"
    script.write_text(NODE)
    run = begin(hooks=TOLD)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        start_node(run, script, RANK=str(rank), LOCAL_RANK=str(rank), **common) for rank in range(2)
    ]
    for process in started:
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == 0, stderr
        assert stdout.split()[-2:] == ["2", "15"]
    assert told(run).count("step 15 in 1") == told(run).count("step 15 in 0") == 1
