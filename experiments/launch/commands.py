"""The commands that `experiments.launch.tpu_vm` runs, as lists of arguments. Nothing is run here."""

import argparse
import dataclasses
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = dict.fromkeys(("v2", "v3", "v4"), "tpu-ubuntu2204-base")
VERSIONS |= {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
# States of a VM, or of the queued request for one. LOST: the VM must be created again. STUCK: only the user can change
# the state. All other states are temporary.
GONE, NODELESS = "GONE", "ACTIVE WITHOUT NODE"
LOST = ("PREEMPTED", "TERMINATED", "SUSPENDED", "FAILED", NODELESS, GONE)
STUCK = ("STOPPED", "HIDDEN", "UNKNOWN")

# Shell commands for the workers. Their files are in ~/diffax: code/, venv/, log, exit (the exit status of a run that
# ended), synced (the installation is complete) and lock, which is locked while a run is active. A reboot releases the
# lock; a file with a process id would remain.
LOCK = (
    'mkdir -p ~/diffax && exec 9> ~/diffax/lock && { flock -w 1 9 || { echo "a run is going on here" >&2; exit 1; }; }'
)
SYNCED = '{ test -e ~/diffax/synced || { echo "not synced" >&2; exit 1; }; }'
# Ubuntu 22.04 has Python 3.10, which is too old for JAX, so uv installs another one. `synced` is created last, so a
# partial installation is never used.
INSTALL = (
    f"{LOCK} && rm -rf ~/diffax/synced ~/diffax/next && mkdir ~/diffax/next"
    " && tar -xzf ~/diffax.tar.gz -C ~/diffax/next && rm -rf ~/diffax/code && mv ~/diffax/next ~/diffax/code"
    " && { test -x ~/diffax/venv/bin/pip || { rm -rf ~/diffax/venv"
    " && PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv"
    " && python3 -m uv venv --quiet --seed --python 3.11 ~/diffax/venv; }; } && cd ~/diffax/code"
    ' && ~/diffax/venv/bin/python -m pip install --quiet -e ".[experiments]" "jax[tpu]" && touch ~/diffax/synced'
)
PROBE = (
    "if [ ! -e ~/diffax/synced ]; then echo unsynced; elif ! flock -n -s ~/diffax/lock true; then echo running;"
    " elif [ -e ~/diffax/exit ]; then cat ~/diffax/exit; else echo idle; fi"
)
# git also lists tracked files that were deleted; tar would fail for them, so they are left out.
PACK = (
    "set -o pipefail; cd {root} && git ls-files -z --cached --others --exclude-standard |"
    ' while IFS= read -r -d "" f; do if [ -e "$f" ] || [ -L "$f" ]; then printf "%s\\0" "$f"; fi; done |'
    " tar -czf {archive} --null -T -"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of a VM, kept in a file from `create` to `delete`.

    name, type, zone, version, project, spot, queued: of the VM, as the flags of `create`. setup: a shell command that
    each worker runs before each start. command: the flags of experiments.train.
    """

    name: str
    type: str
    zone: str
    version: str
    project: str | None = None
    spot: bool = False
    queued: bool = False
    setup: str | None = None
    command: tuple[str, ...] = ()


def gcloud(vm: Settings, group: str, verb: str, *arguments: str) -> list[str]:
    """A command of `gcloud compute tpus` in the VM's zone and project."""
    project = [f"--project={vm.project}"] if vm.project else []
    return ["gcloud", "compute", "tpus", group, verb, *arguments, f"--zone={vm.zone}", *project]


def create(vm: Settings) -> list[str]:
    """Create the VM, or queue a request for it."""
    command = gcloud(vm, "queued-resources" if vm.queued else "tpu-vm", "create", vm.name)
    command += [f"--node-id={vm.name}"] if vm.queued else []
    version = "--runtime-version" if vm.queued else "--version"
    return [*command, f"--accelerator-type={vm.type}", f"{version}={vm.version}", *(["--spot"] if vm.spot else [])]


def delete(vm: Settings) -> list[str]:
    """Delete the VM, or the queued request together with its VM."""
    if vm.queued:
        return [*gcloud(vm, "queued-resources", "delete", vm.name), "--force", "--quiet"]
    return [*gcloud(vm, "tpu-vm", "delete", vm.name), "--quiet"]


def describe(vm: Settings) -> list[list[str]]:
    """Print the state of the queued request, if there is one, and that of the VM."""
    request = [[*gcloud(vm, "queued-resources", "describe", vm.name), "--format=value(state.state)"]]
    return [*(request if vm.queued else []), [*gcloud(vm, "tpu-vm", "describe", vm.name), "--format=value(state)"]]


def wait_line(vm: Settings) -> list[str]:
    """Wait until the VM is READY. A dry run prints this in place of `tpu_vm.wait`."""
    return ["bash", "-c", f'until [ "$({shlex.join(describe(vm)[-1])})" = READY ]; do sleep 30; done']


def ssh(vm: Settings, command: str, worker: str = "all") -> list[str]:
    """Run a shell command on workers."""
    return [*gcloud(vm, "tpu-vm", "ssh", vm.name), f"--worker={worker}", f"--command={command}"]


def sync(vm: Settings, archive: Path) -> list[list[str]]:
    """Pack the working tree, copy it to all workers and install it there."""
    pack = PACK.format(root=shlex.quote(str(ROOT)), archive=shlex.quote(str(archive)))
    copy = [*gcloud(vm, "tpu-vm", "scp", str(archive), f"{vm.name}:diffax.tar.gz"), "--worker=all"]
    return [["bash", "-c", pack], copy, ssh(vm, INSTALL)]


def start(vm: Settings) -> list[str]:
    """Start the run on all workers. It continues after the connection ends and writes its exit status into a file."""
    train = f"~/diffax/venv/bin/python -u -m experiments.train --distributed {shlex.join(vm.command)}"
    job = shlex.quote(f"{train}; echo $? > ~/diffax/exit")
    # A daemon that the setup starts must not inherit the lock, so descriptor 9 is closed for it; the run inherits it.
    setup = f" && {{ {vm.setup}; }} 9>&-" if vm.setup else ""
    launch = f"{{ nohup sh -c {job} >> ~/diffax/log 2>&1 < /dev/null & }}"
    return ssh(vm, f"{LOCK} && {SYNCED}{setup} && cd ~/diffax/code && rm -f ~/diffax/exit && {launch}")


def plan(vm: Settings, args: argparse.Namespace, archive: Path) -> list[list[str]]:
    """The commands of a dry run; for `resume` those of a VM that was preempted."""
    tail = f"tail -n {args.lines} {'-F ' if args.follow else ''}~/diffax/log"
    again = [delete(vm), create(vm), wait_line(vm), ssh(vm, PROBE), *sync(vm, archive), start(vm)]
    return {
        "create": [create(vm), wait_line(vm)],
        "sync": sync(vm, archive),
        "run": [start(vm)],
        "logs": [ssh(vm, tail, args.worker)],
        "status": [*describe(vm), ssh(vm, PROBE)],
        "resume": [*describe(vm), *again],
        "delete": [*describe(vm), delete(vm)],
    }[args.verb]


def verdict(workers: list[str]) -> str:
    """The state of the run, from the workers' answers to PROBE.

    When one worker goes down, the others fail. So a run with one interrupted worker is interrupted, whatever the exit
    statuses of the others are.

    >>> verdict(["running", "75"]), verdict(["0", "0"]), verdict(["idle", "1"]), verdict(["1", "0"])
    ('running', 'finished', 'interrupted', 'failed')
    """
    for word in ("running", "unsynced"):
        if word in workers:
            return word
    if "75" in workers or "idle" in workers or not workers:
        return "interrupted"
    return "finished" if set(workers) == {"0"} else "failed"
