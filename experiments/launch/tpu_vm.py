"""Trains on a Cloud TPU VM, with one host or many, and takes the run up again after preemption: docs/launch.md.

    python -m experiments.launch.tpu_vm create NAME --type=v4-8 --zone=us-central2-b [--spot] [--queued]
    python -m experiments.launch.tpu_vm sync NAME
    python -m experiments.launch.tpu_vm run NAME -- --config=FILE --workdir=DIR [flags of experiments.train]
    python -m experiments.launch.tpu_vm resume NAME [--watch]
    python -m experiments.launch.tpu_vm status|logs|delete NAME

--dry_run prints the commands, one a line, and runs nothing. What was created and run is remembered in a JSON file.
"""

import argparse
import dataclasses
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from experiments.launch import commands
from experiments.launch.commands import (
    GONE,
    LOST,
    NODELESS,
    PROBE,
    STUCK,
    VERSIONS,
    Settings,
    create,
    delete,
    describe,
    plan,
    ssh,
    start,
    sync,
    verdict,
)

SETTINGS = Path("~/.config/diffax/tpu").expanduser()
VERBS = {
    "create": "make the VM",
    "sync": "copy the working tree to all workers and install it",
    "run": "start training on all workers: run NAME -- FLAGS",
    "resume": "make the VM again if it was preempted, start the run again if it stopped",
    "logs": "the end of the log",
    "status": "the state of VM and run",
    "delete": "delete the VM and forget it",
}


class CommandError(Exception):
    """A command that failed, or a VM that did: the message, and the exit status to leave with."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def say(text: str) -> None:
    """What is going on, on stderr."""
    print(text, file=sys.stderr, flush=True)


def execute(commands: Iterable[list[str]], dry_run: bool = False) -> None:
    """Runs commands one after the other, or prints them.

    Raises:
      CommandError: at the first that fails, with its exit status.
    """
    for argv in commands:
        if dry_run:
            print(shlex.join(argv), flush=True)
            continue
        say(f"+ {shlex.join(argv)}")
        check(subprocess.call(argv), argv)


def check(status: int, argv: list[str]) -> None:
    """Raises `CommandError` if a command did."""
    if status:
        status = status if status > 0 else 128 - status  # killed by a signal: as shells say it
        raise CommandError(f"exit status {status} of {shlex.join(argv)}", status)


def ask(argv: list[str]) -> str:
    """The answer to a `describe`. That something does not exist is one; any other failure is not, and is no reason
    to make a new VM.
    """
    found = subprocess.run(argv, capture_output=True, text=True)
    if found.returncode and "NOT_FOUND" in found.stderr:
        return GONE
    sys.stderr.write(found.stderr)
    check(found.returncode, argv)
    return found.stdout.strip()


def state(vm: Settings) -> str:
    """The state of the queued request while it has no node, else that of the node."""
    *request, node = describe(vm)
    for argv in request:
        if (found := ask(argv)) != "ACTIVE":
            return found
    found = ask(node)
    return NODELESS if vm.queued and found == GONE else found


def wait(vm: Settings, poll: float, accept: tuple[str, ...] = ()) -> str:
    """Waits until the VM is READY, or in another state to accept; raises `CommandError` if it will not be."""
    last = ""
    while (now := state(vm)) not in ("READY", *accept):
        if now in (*LOST, *STUCK):
            raise CommandError(f"{vm.name} is {now} and will not be READY by itself")
        if now != last:
            say(f"{vm.name} is {now}: waiting")
        last = now
        time.sleep(poll)
    return now


def probe(vm: Settings) -> list[str]:
    """What each worker says of the run: unsynced, running, idle or an exit status."""
    argv = ssh(vm, PROBE)
    found = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    check(found.returncode, argv)
    return found.stdout.split()


def resume(vm: Settings, archive: Path, poll: float, restart_failed: bool = True) -> str:
    """Brings VM and run to life again, as far as needed; returns what the run was found to be."""
    if (found := wait(vm, poll, accept=LOST)) in LOST:
        say(f"{vm.name} is {found}: making it again")
        execute([create(vm)] if found == GONE else [delete(vm), create(vm)])
        wait(vm, poll)
    workers = probe(vm)
    done = verdict(workers)
    say(f"{vm.name} is READY, its run {done} ({', '.join(workers)})")
    if done in ("unsynced", "interrupted") or (done == "failed" and restart_failed):
        execute([*(sync(vm, archive) if done == "unsynced" else []), start(vm)])
    return done


def watch(vm: Settings, archive: Path, poll: float) -> None:
    """Resumes until the run is finished. What fails on the way, such as a VM not to be had, is tried again."""
    restart_failed = True  # once: somebody asks for it now
    while True:
        try:
            done = resume(vm, archive, poll, restart_failed)
            if done == "finished":
                return
            if done == "failed" and not restart_failed:
                break
            restart_failed = False
        except CommandError as failure:
            say(f"{failure}; next try in {poll:g} s")
        time.sleep(poll)
    raise CommandError(f"the run on {vm.name} failed, and would again; its log says why")


def remember(path: Path, vm: Settings) -> None:
    """Writes the settings in one move: they are there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(vm), indent=2) + "\n")
    os.replace(part, path)


def recall(path: Path) -> Settings:
    """Reads settings; raises `ValueError` if there are none or they are damaged."""
    try:
        vm = Settings(**json.loads(path.read_text()))
        return dataclasses.replace(vm, command=tuple(vm.command))
    except FileNotFoundError:
        raise ValueError(f"NAME {path.stem!r} is unknown, there is no {path}: create it first") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"NAME {path.stem!r} has damaged settings in {path}: {error}") from None


class Parser(argparse.ArgumentParser):
    """Says what is wrong as everything here does, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises `ValueError`."""
        raise ValueError(message)


def parse(argv: list[str]) -> argparse.Namespace:
    """The command line; what follows the first -- is not looked at."""
    parser = Parser(prog="python -m experiments.launch.tpu_vm", description="TPU VMs; see docs/launch.md.")
    parser.set_defaults(worker="0", lines="", follow=False)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    of = {verb: verbs.add_parser(verb, help=does, allow_abbrev=False) for verb, does in VERBS.items()}
    for sub in of.values():
        sub.add_argument("name", metavar="NAME", nargs="?", help="name of the VM")
        sub.add_argument("--name", dest="named", metavar="NAME", help="the same")
        sub.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
        sub.add_argument("--settings_dir", type=Path, default=SETTINGS, help="where settings are remembered")
        sub.add_argument("--poll", default="30", help="seconds between two questions for a state")
    of["create"].add_argument("--type", required=True, help="accelerator type, such as v4-8 or v5litepod-16")
    of["create"].add_argument("--zone", required=True, help="such as us-central2-b")
    of["create"].add_argument("--version", help="runtime version (default: that for JAX on this type)")
    of["create"].add_argument("--project", help="default: that of gcloud")
    of["create"].add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    of["create"].add_argument("--queued", action="store_true", help="by a queued resource: wait until there is one")
    of["run"].add_argument("--setup", help="shell command on each worker before each start, such as a mount")
    of["resume"].add_argument("--watch", action="store_true", help="until the run is finished")
    of["logs"].add_argument("--worker", default="0", help="number of a worker, or all")
    of["logs"].add_argument("--lines", default="100", help="how many of the last lines")
    of["logs"].add_argument("--follow", action="store_true", help="and all that come")
    own = argv[: argv.index("--")] if "--" in argv else argv
    args = parser.parse_args(own)
    args.command = argv[len(own) + 1 :] if "--" in argv else None
    return args


def must(name: str, value: str | None, pattern: str, meaning: str) -> str:
    """Raises `ValueError` for a value that is not of the pattern."""
    if value is None or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} must be {meaning}, got {value!r}")
    return value


def checked(command: list[str] | None) -> tuple[str, ...]:
    """The flags for the entrypoint; raises `ValueError` for what would only fail on the workers."""
    if command is None:
        raise ValueError("run needs -- and the flags of experiments.train after NAME, got no --")
    flags = Parser(add_help=False, allow_abbrev=False)
    flags.add_argument("--config", default="")
    flags.add_argument("--workdir")
    given = flags.parse_known_args(command)[0]
    file = given.config.split(":")[0]  # a config file may be followed by :ARGUMENT
    if Path(file).is_absolute() or not (commands.ROOT / file).is_file():
        raise ValueError(f"--config must be a file by its path from {commands.ROOT}, got {given.config!r}")
    must("--workdir", given.workdir, "/.*", "the absolute path of a folder that all workers share (no gs://: mount it)")
    return tuple(command)


def prepare(args: argparse.Namespace) -> tuple[Settings, Path]:
    """Checks everything that can be wrong before anything runs; returns the VM and the file that remembers it."""
    name = args.name or args.named
    must("NAME", name, "[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "lower-case letters, digits and -, a letter first")
    path = args.settings_dir / f"{name}.json"
    if args.command is not None and args.verb != "run":
        raise ValueError(f"-- goes with run alone, got it with {args.verb}")
    if args.verb != "create":
        vm = recall(path)
    else:
        kind = must("--type", args.type, r"v\d+[a-z]*-\d+", "an accelerator type such as v4-8 or v5litepod-16")
        must("--zone", args.zone, r"[a-z]+-[a-z]+\d+-[a-z]", "a zone such as us-central2-b")
        version = args.version or VERSIONS.get(kind.split("-")[0])
        must("--version", version, r"[\w.-]+", f"a runtime version, and only {', '.join(VERSIONS)} have a default")
        if path.exists():
            raise ValueError(f"NAME {name!r} is in use, see {path}: resume or delete it")
        vm = Settings(name, kind, args.zone, str(version), args.project, args.spot, args.queued)
    args.poll = float(must("--poll", args.poll, r"\d+(\.\d+)?", "a number of seconds"))
    if args.verb == "logs":
        must("--worker", args.worker, r"all|\d+", "the number of a worker or all")
        must("--lines", args.lines, r"\d+", "a number of lines")
    if args.verb == "run":
        setup = vm.setup if args.setup is None else args.setup.strip().rstrip(";")
        must("--setup", setup or "", ".*", "one line")
        vm = dataclasses.replace(vm, command=checked(args.command), setup=setup)
    if args.verb == "resume" and not vm.command:
        raise ValueError(f"NAME {name!r} has no command to resume: run one first")
    if not args.dry_run and not shutil.which("gcloud"):
        raise ValueError("gcloud must be installed (https://cloud.google.com/sdk/docs/install), got none on PATH")
    return vm, path


def act(args: argparse.Namespace, vm: Settings, path: Path) -> None:
    """Does what is asked for, or prints it."""
    archive = path.with_suffix(".tar.gz")
    if args.dry_run or args.verb in ("sync", "run", "logs"):
        execute(plan(vm, args, archive), args.dry_run)
        if args.verb == "run" and not args.dry_run:
            remember(path, vm)
    elif args.verb == "create":
        remember(path, vm)  # before there is something to pay for
        execute([create(vm)])
        wait(vm, args.poll)
    elif args.verb == "resume":
        (watch if args.watch else resume)(vm, archive, args.poll)
    elif args.verb == "status":
        print(f"{vm.name}: {(found := state(vm))}")
        if found == "READY":
            print(f"run: {verdict(workers := probe(vm))} ({', '.join(workers)})")
    else:
        execute([] if state(vm) == GONE else [delete(vm)])
        path.unlink()
        archive.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """Returns the exit status: 2 for bad input, that of a command which failed."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        act(args, *prepare(args))
    except (CommandError, ValueError, OSError) as error:
        say(f"error: {error}")
        return error.status if isinstance(error, CommandError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
