"""The launcher for TPU VMs: its exact commands, and its decisions with a fake gcloud.

The VM of the fake gcloud is a folder: a command over ssh runs on this machine with that folder as its home.
"""

import dataclasses
import json
import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from experiments.launch import arguments, commands, tpu_vm

GCLOUD = r"""#!/bin/bash
printf '%q ' "$3" "$4" "${@:5}" >> $FAKE/calls; echo >> $FAKE/calls
answer() {  # the first line of a file, which goes unless it is the last
  [ -s $FAKE/$1 ] || { echo "ERROR: (gcloud) NOT_FOUND: Resource 'nodes/x' was not found" >&2; exit 1; }
  head -n 1 $FAKE/$1; [ $(wc -l < $FAKE/$1) = 1 ] || sed -i 1d $FAKE/$1
}
if [ -s $FAKE/broken ] && [ "$4" = "$(head -n 1 $FAKE/broken)" ]; then
  echo "ERROR: no more capacity, or no network" >&2; sed -i 1d $FAKE/broken; exit 7
fi
case "$3 $4" in
  "queued-resources describe") answer request ;;
  "tpu-vm describe") answer node ;;
  "queued-resources create") printf 'WAITING_FOR_RESOURCES\nACTIVE\n' > $FAKE/request; echo READY > $FAKE/node ;;
  "tpu-vm create") echo READY > $FAKE/node ;;
  *" delete") rm -rf $FAKE/node $FAKE/request $FAKE/vm; mkdir $FAKE/vm ;;
  "tpu-vm scp") cp "$5" "$FAKE/vm/${6#*:}" ;;
  "tpu-vm ssh") for last; do :; done; cd $FAKE/vm; HOME=$FAKE/vm PATH=$FAKE/vm_bin:$PATH bash -c "${last#--command=}" ;;
esac
"""
# The Python of the VM. It creates an environment whose Python records its arguments and exits with the next status in
# $FAKE/statuses.
VM_PYTHON = r"""#!/bin/bash
[ "$1 $2 $3" = "-m uv venv" ] || exit 0
for last; do :; done
mkdir -p $last/bin; touch $last/bin/pip; chmod +x $last/bin/pip
cat > $last/bin/python <<'END'
#!/bin/bash
echo "$PWD: $*" >> $FAKE/python
[ "$1" = -u ] || exit 0
printf '%s\0' "$@" > $FAKE/argv; echo "training $SEEN"
while [ -e $FAKE/hold ]; do sleep 0.05; done
status=$(head -n 1 $FAKE/statuses); sed -i 1d $FAKE/statuses; exit ${status:-0}
END
chmod +x $last/bin/python
"""
which = shutil.which
VM = commands.Settings("dream", "v4-8", "us-central2-b", "tpu-ubuntu2204-base")
TRAIN = ("--config=configs/c.py", "--workdir=/mnt/runs/a")


def write(path, text, mode=0o644):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


@pytest.fixture
def launch(tmp_path, monkeypatch, capfd):
    """launch(words) -> (status, out, err), without gcloud on PATH."""
    monkeypatch.setattr(commands, "ROOT", tmp_path / "tree")
    write(tmp_path / "tree/configs/c.py", "")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(tpu_vm.shutil, "which", lambda name: None)

    def call(*words):
        capfd.readouterr()
        status = tpu_vm.main([*words[:1], f"--settings_dir={tmp_path}/set", "--poll=0.1", *words[1:]])
        return status, *capfd.readouterr()

    call.folder = tmp_path / "set"
    return call


@pytest.fixture
def cloud(launch, tmp_path, monkeypatch):
    """`launch` with a fake gcloud, whose state is in `cloud.folder`."""
    if not all(map(which, ("flock", "git", "bash"))):
        pytest.skip("needs flock, git and bash")
    write(tmp_path / "bin/gcloud", GCLOUD, 0o755)
    write(tmp_path / "vm_bin/python3", VM_PYTHON, 0o755)
    (tmp_path / "vm").mkdir()
    monkeypatch.undo()
    monkeypatch.setattr(commands, "ROOT", tmp_path / "tree")
    monkeypatch.setenv("FAKE", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    subprocess.run(["git", "init", "-q", tmp_path / "tree"], check=True)
    write(tmp_path / "statuses", "")
    launch.folder = tmp_path
    yield launch
    (tmp_path / "hold").unlink(missing_ok=True)


def save(folder, vm=VM, **changes):
    """Save the settings of a VM."""
    arguments.save_settings(folder / f"{vm.name}.json", dataclasses.replace(vm, **changes))


def calls(folder, *but):
    """Calls of gcloud since the last call of this function, except for some verbs."""
    path = folder / "calls"
    lines = [shlex.split(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return [" ".join(line[:2]) for line in lines if line[1] not in but]


def until(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def ended(folder):
    until((folder / "vm/diffax/exit").exists)
    until(lambda: subprocess.call(["flock", "-n", folder / "vm/diffax/lock", "true"]) == 0)


# The commands, word for word.

SCOPE = "--zone=us-central2-b"
NODE = f"gcloud compute tpus tpu-vm describe dream {SCOPE} '--format=value(state)'"
REQUEST = f"gcloud compute tpus queued-resources describe dream {SCOPE} '--format=value(state.state)'"
CREATE = f"gcloud compute tpus tpu-vm create dream {SCOPE} --accelerator-type=v4-8 --version=tpu-ubuntu2204-base"
QUEUE = (
    f"gcloud compute tpus queued-resources create dream {SCOPE} --node-id=dream --accelerator-type=v4-8"
    " --runtime-version=tpu-ubuntu2204-base"
)
WAIT = (
    "bash -c 'until [ \"$(gcloud compute tpus tpu-vm describe dream --zone=us-central2-b"
    """ '"'"'--format=value(state)'"'"')" = READY ]; do sleep 30; done'"""
)
DELETE = f"gcloud compute tpus tpu-vm delete dream {SCOPE} --quiet"
UNQUEUE = f"gcloud compute tpus queued-resources delete dream {SCOPE} --force --quiet"
SSH = f"gcloud compute tpus tpu-vm ssh dream {SCOPE} --worker=all"
LOCK = (
    "mkdir -p ~/diffax && exec 9> ~/diffax/lock"
    ' && { flock -w 1 9 || { echo "a run is going on here" >&2; exit 1; }; } && '
)
PROBE = (
    f"{SSH} '--command=if [ ! -e ~/diffax/synced ]; then echo unsynced; elif ! flock -n -s ~/diffax/lock true;"
    " then echo running; elif [ -e ~/diffax/exit ]; then cat ~/diffax/exit; else echo idle; fi'"
)
INSTALL = (
    f"{SSH} '--command={LOCK}rm -rf ~/diffax/synced ~/diffax/next && mkdir ~/diffax/next"
    " && tar -xzf ~/diffax.tar.gz -C ~/diffax/next && rm -rf ~/diffax/code && mv ~/diffax/next ~/diffax/code"
    " && { test -x ~/diffax/venv/bin/pip || { rm -rf ~/diffax/venv"
    " && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
    " && python3 -m uv venv --quiet --seed --python 3.11 ~/diffax/venv; }; } && cd ~/diffax/code"
    ' && ~/diffax/venv/bin/python -m pip install --quiet -e ".[experiments]" "jax[tpu]" && touch ~/diffax/synced\''
)
START = (
    f'{SSH} \'--command={LOCK}{{ test -e ~/diffax/synced || {{ echo "not synced" >&2; exit 1; }}; }}%s'
    " && cd ~/diffax/code && rm -f ~/diffax/exit && { nohup sh -c"
    """ '"'"'~/diffax/venv/bin/python -u -m experiments.train --distributed --config=configs/c.py"""
    """ --workdir=/mnt/runs/a; echo $? > ~/diffax/exit'"'"' >> ~/diffax/log 2>&1 < /dev/null & }'"""
)


def sync_lines(tmp_path):
    archive = tmp_path / "set/dream.tar.gz"
    pack = (
        f"bash -c 'set -o pipefail; cd {tmp_path}/tree && git ls-files -z --cached --others --exclude-standard |"
        ' while IFS= read -r -d "" f; do if [ -e "$f" ] || [ -L "$f" ]; then printf "%s\\0" "$f"; fi; done |'
        f" tar -czf {archive} --null -T -'"
    )
    return [pack, f"gcloud compute tpus tpu-vm scp {archive} dream:diffax.tar.gz {SCOPE} --worker=all", INSTALL]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), [CREATE, WAIT]),
        (("--spot",), [f"{CREATE} --spot", WAIT]),
        (("--queued",), [QUEUE, WAIT]),
        (("--queued", "--spot"), [f"{QUEUE} --spot", WAIT]),
    ],
)
def test_create(launch, flags, expected):
    words = ("create", "dream", "--type=v4-8", "--zone=us-central2-b", *flags, "--dry_run")
    assert launch(*words) == (0, "".join(line + "\n" for line in expected), "")
    assert not launch.folder.exists()


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("v2-8", "tpu-ubuntu2204-base"),
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-8", "v2-alpha-tpuv5"),
        ("v6e-8", "v2-alpha-tpuv6e"),
    ],
)
def test_create_chooses_the_runtime_version(launch, kind, version):
    words = ("create", "--name=dream", f"--type={kind}", "--zone=europe-west4-a", "--project=p", "--dry_run")
    out = launch(*words)[1].splitlines()
    assert out[0] == (
        "gcloud compute tpus tpu-vm create dream --zone=europe-west4-a --project=p"
        f" --accelerator-type={kind} --version={version}"
    )
    assert f"--version={version}-x" in launch(*words, f"--version={version}-x")[1]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("run", "dream", "--", *TRAIN), [START % ""]),
        (("run", "dream", "--setup=mount /mnt/runs;", "--", *TRAIN), [START % " && { mount /mnt/runs; } 9>&-"]),
        (("logs", "dream"), [f"{SSH[:-3]}0 '--command=tail -n 100 ~/diffax/log'"]),
        (
            ("logs", "dream", "--worker=all", "--lines=5", "--follow"),
            [f"{SSH} '--command=tail -n 5 -F ~/diffax/log'"],
        ),
        (("status", "dream"), [NODE, PROBE]),
        (("delete", "dream"), [NODE, DELETE]),
    ],
)
def test_dry_run(launch, words, expected):
    save(launch.folder)
    at = words.index("--") if "--" in words else len(words)
    status = launch(*words[:at], "--dry_run", *words[at:])
    assert status == (0, "".join(line + "\n" for line in expected), "")
    assert arguments.load_settings(launch.folder / "dream.json") == VM


def test_dry_run_of_sync_and_resume(launch, tmp_path):
    save(launch.folder, command=TRAIN)
    assert launch("sync", "dream", "--dry_run")[1].splitlines() == sync_lines(tmp_path)
    whole = [NODE, DELETE, CREATE, WAIT, PROBE, *sync_lines(tmp_path), START % ""]
    assert launch("resume", "dream", "--dry_run")[1].splitlines() == whole


def test_dry_run_of_a_queued_vm(launch, tmp_path):
    save(launch.folder, queued=True, spot=True, command=TRAIN)
    whole = [REQUEST, NODE, UNQUEUE, f"{QUEUE} --spot", WAIT, PROBE, *sync_lines(tmp_path), START % ""]
    assert launch("resume", "dream", "--watch", "--dry_run")[1].splitlines() == whole
    assert launch("delete", "dream", "--dry_run")[1].splitlines() == [REQUEST, NODE, UNQUEUE]
    assert launch("status", "dream", "--dry_run")[1].splitlines() == [REQUEST, NODE, PROBE]


# With a fake gcloud.

ODD = ("--config.a='b'", '--note=say "it\'s $HOME; `rm x`"', "--empty=", "two  spaces", "*", "--", "\\n", "ü")


def test_arguments_with_special_characters_arrive_unchanged(cloud):
    save(cloud.folder / "set")
    cloud("create", "other", "--type=v4-8", "--zone=us-central2-b")
    assert cloud("sync", "dream")[0] == 0
    assert cloud("run", "dream", "--", *TRAIN, *ODD)[0] == 0
    ended(cloud.folder)
    seen = (cloud.folder / "argv").read_text().split("\0")[:-1]
    assert seen == ["-u", "-m", "experiments.train", "--distributed", *TRAIN, *ODD]
    assert arguments.load_settings(cloud.folder / "set/dream.json").command == (*TRAIN, *ODD)


def test_the_lines_of_a_dry_run_work_in_a_shell(cloud):
    save(cloud.folder / "set", command=(*TRAIN, *ODD))
    lines = cloud("resume", "dream", "--dry_run")[1].splitlines()
    script = "set -e\n" + "\n".join([*lines[2:4], *lines[5:]])  # the first two lines are for an existing VM
    subprocess.run(["bash", "-c", script], check=True, capture_output=True)
    ended(cloud.folder)
    assert (cloud.folder / "argv").read_text().split("\0")[4:-1] == [*TRAIN, *ODD]


def test_create_sync_run_logs_and_delete(cloud):
    folder = cloud.folder
    write(folder / "hold", "")
    assert cloud("create", "dream", "--type=v4-8", "--zone=us-central2-b", "--spot", "--queued")[0] == 0
    assert cloud("status", "dream")[1] == "dream: READY\nrun: unsynced (unsynced)\n"
    assert cloud("sync", "dream")[0] == 0
    assert cloud("run", "dream", "--setup=export SEEN=it", "--", *TRAIN)[0] == 0
    assert cloud("status", "dream")[1] == "dream: READY\nrun: running (running)\n"
    for words in (("run", "dream", "--", *TRAIN), ("sync", "dream")):
        status, _, err = cloud(*words)
        assert status == 1
        assert "a run is going on here" in err
    (folder / "hold").unlink()
    ended(folder)
    assert cloud("status", "dream")[1] == "dream: READY\nrun: finished (0)\n"
    assert cloud("logs", "dream")[1] == "training it\n"
    assert cloud("delete", "dream")[0] == 0
    assert os.listdir(folder / "set") == []
    assert cloud("status", "dream")[0] == 2


def test_sync_copies_the_working_tree(cloud):
    tree = cloud.folder / "tree"
    for name in ("kept.py", "deleted.py", "ignored.log", "new file'.py", "-odd.py"):
        write(tree / name, name)
    write(tree / ".gitignore", "*.log\n")
    subprocess.run(["git", "-C", tree, "add", "kept.py", "deleted.py"], check=True)
    (tree / "deleted.py").unlink()
    save(cloud.folder / "set")
    for _ in range(2):
        assert cloud("sync", "dream")[0] == 0
        code = cloud.folder / "vm/diffax/code"
        files = {str(path.relative_to(code)) for path in code.rglob("*") if path.is_file()}
        assert files == {"kept.py", "new file'.py", "-odd.py", ".gitignore", "configs/c.py"}
        (tree / "stale.py").touch()
        assert cloud("sync", "dream")[0] == 0
        (tree / "stale.py").unlink()
    install = f"{code}: -m pip install --quiet -e .[experiments] jax[tpu]"
    assert set((cloud.folder / "python").read_text().splitlines()) == {install}


def started(cloud, **changes):
    """Make a VM on which a run has ended, with the first status in `statuses`, or 75 if there is none."""
    folder = cloud.folder
    save(folder / "set", command=TRAIN, **changes)
    write(folder / "node", "READY\n")
    write(folder / "request", "ACTIVE\n")
    if not (folder / "statuses").read_text():
        write(folder / "statuses", "75\n")
    assert cloud("sync", "dream")[0] == 0
    assert cloud("run", "dream", "--", *TRAIN)[0] == 0
    ended(folder)
    calls(folder)


RUN_AGAIN = ["tpu-vm ssh", "tpu-vm ssh"]
ANEW = ["tpu-vm create", "tpu-vm ssh", "tpu-vm scp", "tpu-vm ssh", "tpu-vm ssh"]


@pytest.mark.parametrize("node", ["PREEMPTED", "TERMINATED"])
def test_resume_creates_a_lost_vm_again(cloud, node):
    started(cloud)
    write(cloud.folder / "node", node + "\n")
    assert cloud("resume", "dream")[0] == 0
    ended(cloud.folder)
    assert calls(cloud.folder, "describe") == ["tpu-vm delete", *ANEW]
    assert (cloud.folder / "argv").read_text().split("\0")[4:-1] == list(TRAIN)


def test_resume_creates_a_deleted_vm_again(cloud):
    save(cloud.folder / "set", command=TRAIN)
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder, "describe") == ANEW
    ended(cloud.folder)


@pytest.mark.parametrize(("request_", "node"), [("SUSPENDED", ""), ("SUSPENDING\nSUSPENDED", ""), ("FAILED", "")])
def test_resume_creates_a_queued_vm_again_by_the_state_of_its_request(cloud, request_, node):
    started(cloud, queued=True)
    write(cloud.folder / "request", request_ + "\n")
    write(cloud.folder / "node", node)
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder, "describe") == ["queued-resources delete", "queued-resources create", *ANEW[1:]]
    ended(cloud.folder)


@pytest.mark.parametrize("node", ["PREEMPTED\n", ""])
def test_resume_creates_a_queued_vm_again_by_the_state_of_its_node(cloud, node):
    started(cloud, queued=True)
    write(cloud.folder / "node", node)
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder, "describe") == ["queued-resources delete", "queued-resources create", *ANEW[1:]]
    ended(cloud.folder)


def test_resume_waits_for_a_vm_under_repair(cloud):
    started(cloud)
    write(cloud.folder / "node", "REPAIRING\nREPAIRING\nREADY\n")
    status, _, err = cloud("resume", "dream")
    assert (status, calls(cloud.folder)) == (0, ["tpu-vm describe"] * 3 + RUN_AGAIN)
    assert err.count("dream is REPAIRING: waiting") == 1
    ended(cloud.folder)


@pytest.mark.parametrize("status", ["75", "1"])
def test_resume_on_a_ready_vm_only_runs_the_command_again(cloud, status):
    write(cloud.folder / "statuses", status + "\n")
    started(cloud)
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder) == ["tpu-vm describe", *RUN_AGAIN]
    ended(cloud.folder)


def test_resume_after_a_reboot(cloud):
    started(cloud)
    (cloud.folder / "vm/diffax/exit").unlink()
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder) == ["tpu-vm describe", *RUN_AGAIN]
    ended(cloud.folder)


def test_resume_does_nothing_for_a_running_or_finished_run(cloud):
    write(cloud.folder / "statuses", "0\n")
    started(cloud)
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder) == ["tpu-vm describe", "tpu-vm ssh"]
    write(cloud.folder / "hold", "")
    assert cloud("run", "dream", "--", *TRAIN)[0] == 0
    calls(cloud.folder)
    assert cloud("resume", "dream")[0] == 0
    assert calls(cloud.folder) == ["tpu-vm describe", "tpu-vm ssh"]


@pytest.mark.parametrize("broken", ["describe", "ssh"])
def test_resume_does_not_create_a_vm_after_a_failed_query(cloud, broken):
    started(cloud)
    write(cloud.folder / "broken", broken + "\n")
    status, _, err = cloud("resume", "dream")
    assert status == 7
    assert f"error: exit status 7 of gcloud compute tpus tpu-vm {broken} dream" in err
    assert "no network" in err
    assert {"tpu-vm create", "tpu-vm delete"}.isdisjoint(calls(cloud.folder))


@pytest.mark.parametrize("node", ["STOPPED", "UNKNOWN"])
def test_resume_of_a_vm_that_needs_the_user_is_an_error(cloud, node):
    started(cloud)
    write(cloud.folder / "node", node + "\n")
    assert cloud("resume", "dream")[::2] == (1, f"error: dream is {node} and will not be READY by itself\n")


def test_watch_continues_until_the_run_is_finished(cloud):
    started(cloud)
    write(cloud.folder / "node", "PREEMPTED\n")
    write(cloud.folder / "broken", "create\n")
    write(cloud.folder / "statuses", "75\n75\n0\n")
    status, _, err = cloud("resume", "dream", "--watch")
    assert status == 0
    assert "exit status 7 of gcloud compute tpus tpu-vm create dream" in err
    assert "next try in 0.1 s" in err
    assert err.splitlines()[-1] == "dream is READY, its run finished (0)"
    done = calls(cloud.folder, "describe", "ssh")
    assert done == ["tpu-vm delete", "tpu-vm create", "tpu-vm create", "tpu-vm scp"]
    assert (cloud.folder / "python").read_text().count("experiments.train") == 4


def test_watch_runs_a_failed_run_again_only_once(cloud):
    write(cloud.folder / "statuses", "1\n1\n0\n")
    started(cloud)
    status, _, err = cloud("resume", "dream", "--watch")
    assert status == 1
    assert err.splitlines()[-1] == "error: the run on dream failed; see its log: logs dream"
    assert (cloud.folder / "python").read_text().count("experiments.train") == 2


@pytest.mark.parametrize(
    ("workers", "verdict"),
    [
        ("0 0", "finished"),
        ("0 running 75", "running"),
        ("unsynced 0", "unsynced"),
        ("75 75", "interrupted"),
        ("idle 134", "interrupted"),
        ("75 1 0", "interrupted"),
        ("", "interrupted"),
        ("0 1", "failed"),
        ("137 134", "failed"),
    ],
)
def test_verdict(workers, verdict):
    assert commands.verdict(workers.split()) == verdict


def test_a_vm_that_could_not_be_created_can_be_deleted_and_created_again(cloud):
    write(cloud.folder / "broken", "create\n")
    words = ("create", "dream", "--type=v4-8", "--zone=us-central2-b")
    assert cloud(*words)[0] == 7
    assert cloud(*words)[::2] == (
        2,
        f"error: NAME 'dream' is in use, see {cloud.folder}/set/dream.json: resume or delete it\n",
    )
    calls(cloud.folder)
    assert cloud("delete", "dream")[0] == 0
    assert calls(cloud.folder) == ["tpu-vm describe"]
    assert cloud(*words)[0] == 0


# Bad input.


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "the following arguments are required: COMMAND"),
        (("fly", "dream"), "argument COMMAND: invalid choice: 'fly'"),
        (("status",), "NAME must be lower-case letters, digits and -, a letter first, got None"),
        (("status", "Dream"), "got 'Dream'"),
        (("status", "../x"), "got '../x'"),
        (("status", "d" * 64), "NAME must be"),
        (("resume", "other"), "NAME 'other' is unknown, there is no "),
        (("resume", "dream"), "NAME 'dream' has no command to resume: use run first"),
        (("create", "x", "--type=v4-8"), "the following arguments are required: --zone"),
        (("create", "x", "--type=tpu", "--zone=us-central2-b"), "--type must be an accelerator type such as v4-8"),
        (("create", "x", "--type=v4-8", "--zone=us"), "--zone must be a zone such as us-central2-b, got 'us'"),
        (("create", "x", "--type=v9-8", "--zone=us-central2-b"), "--version must be a runtime version"),
        (("create", "dream", "--type=v4-8", "--zone=us-central2-b"), "NAME 'dream' is in use"),
        (("create", "x", "--typ=v4-8"), "required: --type, --zone"),
        (("run", "dream"), "run needs -- and the flags of experiments.train after NAME, got no --"),
        (
            ("run", "dream", "--", "--workdir=/mnt/a"),
            "--config must be the name of a config, or a file by its path from ",
        ),
        (("run", "dream", "--", "--config=configs/no.py", "--workdir=/mnt/a"), "got 'configs/no.py'"),
        (("run", "dream", "--", "--config", "/etc/passwd", "--workdir=/mnt/a"), "got '/etc/passwd'"),
        (("run", "dream", "--", "--config"), "argument --config: expected one argument"),
        (("run", "dream", "--", "--config=configs/c.py"), "--workdir must be the absolute path of a folder"),
        (("run", "dream", "--", "--config=configs/c.py", "--workdir=gs://b/a"), "got 'gs://b/a'"),
        (("run", "dream", "--", "--config=configs/c.py", "--workdir", "runs/a"), "got 'runs/a'"),
        (("run", "dream", "--setup=a\nb", "--", *TRAIN), "--setup must be one line, got 'a\\nb'"),
        (("sync", "dream", "--", "x"), "-- must be used with run only, got it with sync"),
        (("logs", "dream", "--worker=some"), "--worker must be the number of a worker or all, got 'some'"),
        (("logs", "dream", "--lines=-3"), "--lines must be a number of lines, got '-3'"),
        (("status", "dream", "--poll=x"), "--poll must be a number of seconds, got 'x'"),
        (("status", "dream"), "gcloud must be installed"),
        (("status", "broken"), "NAME 'broken' has damaged settings in "),
        (("status", "strange"), "NAME 'strange' has damaged settings in "),
    ],
)
def test_bad_input_is_one_line_and_status_2(launch, words, error):
    save(launch.folder)
    write(launch.folder / "broken.json", '{"name": "bro')
    write(launch.folder / "strange.json", json.dumps({"name": "strange", "color": "red"}))
    status, out, err = launch(*words)
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert error in err


def test_a_config_file_may_have_an_argument(launch):
    save(launch.folder)
    words = ("run", "dream", "--dry_run", "--", "--config", "configs/c.py:big", "--workdir", "/mnt/a")
    assert "--config configs/c.py:big --workdir /mnt/a;" in launch(*words)[1]


def test_a_config_may_be_a_name(launch, tmp_path):
    save(launch.folder)
    write(tmp_path / "tree/experiments/configs/d.py", "")
    words = ("run", "dream", "--dry_run", "--", "--config=d", "--workdir=/mnt/a")
    assert "--config=d --workdir=/mnt/a;" in launch(*words)[1]


def test_a_failed_save_keeps_the_old_settings(tmp_path, monkeypatch):
    arguments.save_settings(tmp_path / "dream.json", VM)

    def fail(*paths):
        raise OSError("power cut")

    monkeypatch.setattr(arguments.os, "replace", fail)
    with pytest.raises(OSError, match="power cut"):
        arguments.save_settings(tmp_path / "dream.json", dataclasses.replace(VM, zone="eu"))
    assert arguments.load_settings(tmp_path / "dream.json") == VM


def test_the_default_folder_of_the_settings():
    assert Path("~/.config/diffax/tpu").expanduser() == arguments.SETTINGS_DIR


# Commands of docs/launch.md.

PAGE = (Path(__file__).parents[2] / "docs/launch.md").read_text()


LINES = PAGE.replace("\\\n", "").splitlines()


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("python -m experiments.launch.tpu_vm ")])
def test_commands_of_the_page_can_be_run(launch, monkeypatch, line):
    monkeypatch.setattr(commands, "ROOT", Path(__file__).parents[2])
    words = shlex.split(line)[3:]
    if words[0] != "create":
        save(launch.folder, command=TRAIN)
    assert launch(*words[:1], "--dry_run", *words[1:])[::2] == (0, "")


@pytest.mark.parametrize(("status", "requeued"), [(75, "requeue 7\n"), (0, ""), (1, "")])
def test_the_slurm_script_requeues_the_job_after_status_75(tmp_path, status, requeued):
    script = next(block for block in PAGE.split("```bash\n") if block.startswith("#!/bin/bash")).split("```")[0]
    write(tmp_path / "srun", f'#!/bin/sh\necho "$@" > {tmp_path}/ran\nexit {status}\n', 0o755)
    write(tmp_path / "scontrol", '#!/bin/sh\necho "$@"\n', 0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, requeued, "")
    assert "python -m experiments.train --distributed --config=" in (tmp_path / "ran").read_text()
