"""The commands of `experiments.launch.tpu_vm`, as lists of arguments, by functions of its settings that run nothing."""

import argparse
import dataclasses
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VERSIONS = dict.fromkeys(("v2", "v3", "v4"), "tpu-ubuntu2204-base")
VERSIONS |= {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
# States of a node, or of the queued request for one: those that only a new one helps out of, and those that are left by
# hand alone. All others pass.
GONE, NODELESS = "GONE", "ACTIVE WITHOUT NODE"
LOST = ("PREEMPTED", "TERMINATED", "SUSPENDED", "FAILED", NODELESS, GONE)
STUCK = ("STOPPED", "HIDDEN", "UNKNOWN")

# What the workers are told. All paths are under ~/diffax: code/ venv/ log, exit (the status of a run that ended),
# synced (installed), and lock, which a run holds while it lives: unlike a pid, a lock does not outlast a reboot.
LOCK = (
    'mkdir -p ~/diffax && exec 9> ~/diffax/lock && { flock -w 1 9 || { echo "a run is going on here" >&2; exit 1; }; }'
)
SYNCED = '{ test -e ~/diffax/synced || { echo "not synced" >&2; exit 1; }; }'
# The images are Ubuntu 22.04, whose Python 3.10 is too old for JAX, so uv fetches one. What is half done is never
# marked synced.
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
# Files that are deleted but still tracked are listed too, and tar would stop at them.
PACK = (
    "set -o pipefail; cd {root} && git ls-files -z --cached --others --exclude-standard |"
    ' while IFS= read -r -d "" f; do if [ -e "$f" ] || [ -L "$f" ]; then printf "%s\\0" "$f"; fi; done |'
    " tar -czf {archive} --null -T -"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """All that is remembered of a VM. setup: a shell command before each start; command: flags of experiments.train."""

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
    """Makes the VM, or queues the request for it."""
    spot = ["--spot"] if vm.spot else []
    kind = f"--accelerator-type={vm.type}"
    if vm.queued:
        node = [f"--node-id={vm.name}", kind, f"--runtime-version={vm.version}"]
        return [*gcloud(vm, "queued-resources", "create", vm.name), *node, *spot]
    return [*gcloud(vm, "tpu-vm", "create", vm.name), kind, f"--version={vm.version}", *spot]


def delete(vm: Settings) -> list[str]:
    """Deletes the VM, and with a queued request its node too."""
    if vm.queued:
        return [*gcloud(vm, "queued-resources", "delete", vm.name), "--force", "--quiet"]
    return [*gcloud(vm, "tpu-vm", "delete", vm.name), "--quiet"]


def describe(vm: Settings) -> list[list[str]]:
    """Asks for the state of the queued request, if there is one, and of the node."""
    request = [[*gcloud(vm, "queued-resources", "describe", vm.name), "--format=value(state.state)"]]
    return [*(request if vm.queued else []), [*gcloud(vm, "tpu-vm", "describe", vm.name), "--format=value(state)"]]


def wait_line(vm: Settings) -> list[str]:
    """What stands in a dry run for `wait`."""
    return ["bash", "-c", f'until [ "$({shlex.join(describe(vm)[-1])})" = READY ]; do sleep 30; done']


def ssh(vm: Settings, command: str, worker: str = "all") -> list[str]:
    """A shell command on workers."""
    return [*gcloud(vm, "tpu-vm", "ssh", vm.name), f"--worker={worker}", f"--command={command}"]


def sync(vm: Settings, archive: Path) -> list[list[str]]:
    """Packs the working tree, copies it to all workers and installs it there."""
    pack = PACK.format(root=shlex.quote(str(ROOT)), archive=shlex.quote(str(archive)))
    copy = [*gcloud(vm, "tpu-vm", "scp", str(archive), f"{vm.name}:diffax.tar.gz"), "--worker=all"]
    return [["bash", "-c", pack], copy, ssh(vm, INSTALL)]


def start(vm: Settings) -> list[str]:
    """Starts the run on all workers; it goes on when the connection ends, and leaves its exit status in a file."""
    train = f"~/diffax/venv/bin/python -u -m experiments.train --distributed {shlex.join(vm.command)}"
    job = shlex.quote(f"{train}; echo $? > ~/diffax/exit")
    setup = f" && {{ {vm.setup}; }} 9>&-" if vm.setup else ""  # a daemon that it starts must not hold the lock
    launch = f"{{ nohup sh -c {job} >> ~/diffax/log 2>&1 < /dev/null & }}"  # but this does
    return ssh(vm, f"{LOCK} && {SYNCED}{setup} && cd ~/diffax/code && rm -f ~/diffax/exit && {launch}")


def plan(vm: Settings, args: argparse.Namespace, archive: Path) -> list[list[str]]:
    """The commands of a dry run; for `resume` all that it does when the VM was preempted. Up to here nothing runs."""
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
    """What the workers' answers to PROBE say of the run as a whole.

    A worker that went down takes the others with it, so one that only wants to be started again outweighs failures.

    >>> verdict(["running", "75"]), verdict(["0", "0"]), verdict(["idle", "1"]), verdict(["1", "0"])
    ('running', 'finished', 'interrupted', 'failed')
    """
    for word in ("running", "unsynced"):
        if word in workers:
            return word
    if "75" in workers or "idle" in workers or not workers:
        return "interrupted"
    return "finished" if set(workers) == {"0"} else "failed"
