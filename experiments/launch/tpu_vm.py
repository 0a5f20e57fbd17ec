"""Train on a Cloud TPU VM with one host or many, and resume after preemption: docs/launch.md.

    python -m experiments.launch.tpu_vm create NAME --type=v4-8 --zone=us-central2-b [--spot] [--queued]
    python -m experiments.launch.tpu_vm sync NAME
    python -m experiments.launch.tpu_vm run NAME -- --config=CONFIG --workdir=DIR [flags of experiments.train]
    python -m experiments.launch.tpu_vm resume NAME [--watch]
    python -m experiments.launch.tpu_vm status|logs|delete NAME

--dry_run prints the commands, one a line, and runs nothing. A JSON file keeps the settings of a VM and of its run.
"""

import argparse
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from experiments.launch import commands
from experiments.launch.arguments import checked_settings, parse, save_settings
from experiments.launch.commands import GONE, LOST, Settings, verdict


class CommandError(Exception):
    """A command or a VM failed. status: the exit status of this program."""

    def __init__(self, message: str, status: int = 1):
        super().__init__(message)
        self.status = status


def report(text: str) -> None:
    """Print a line to stderr."""
    print(text, file=sys.stderr, flush=True)


def execute(argvs: Iterable[list[str]], dry_run: bool = False) -> None:
    """Run commands one after the other, or print them.

    Raises:
      CommandError: if one fails, with its exit status; later ones are not run.
    """
    for argv in argvs:
        if dry_run:
            print(shlex.join(argv), flush=True)
        else:
            report(f"+ {shlex.join(argv)}")
            check(subprocess.call(argv), argv)


def check(status: int, argv: list[str]) -> None:
    """Raise `CommandError` for an exit status other than 0."""
    if status:
        status = status if status > 0 else 128 - status  # after a signal, as in shells
        raise CommandError(f"exit status {status} of {shlex.join(argv)}", status)


def query(argv: list[str]) -> str:
    """The output of a `describe`, GONE if the resource does not exist.

    Raises:
      CommandError: for any other failure, because then the VM may exist and must not be created again.
    """
    result = subprocess.run(argv, capture_output=True, text=True)
    if result.returncode and "NOT_FOUND" in result.stderr:
        return GONE
    sys.stderr.write(result.stderr)
    check(result.returncode, argv)
    return result.stdout.strip()


def state(vm: Settings) -> str:
    """The state of the queued request until it has a VM, then that of the VM."""
    *request, node = commands.describe(vm)
    for argv in request:
        if (answer := query(argv)) != "ACTIVE":
            return answer
    answer = query(node)
    return commands.NODELESS if vm.queued and answer == GONE else answer


def wait(vm: Settings, poll: float, accept: tuple[str, ...] = ()) -> str:
    """Wait until the VM is READY or in a state of `accept`; raise `CommandError` if it cannot become READY."""
    last = ""
    while (now := state(vm)) not in ("READY", *accept):
        if now in (*LOST, *commands.STUCK):
            raise CommandError(f"{vm.name} is {now} and will not be READY by itself")
        if now != last:
            report(f"{vm.name} is {now}: waiting")
        last = now
        time.sleep(poll)
    return now


def probe(vm: Settings) -> list[str]:
    """The state of the run on each worker: unsynced, running, idle or an exit status."""
    argv = commands.ssh(vm, commands.PROBE)
    result = subprocess.run(argv, stdout=subprocess.PIPE, text=True)
    check(result.returncode, argv)
    return result.stdout.split()


def resume(vm: Settings, archive: Path, poll: float, restart_failed: bool = True) -> str:
    """Create the VM and start the run again where necessary; return the state of the run before that."""
    if (node := wait(vm, poll, accept=LOST)) in LOST:
        report(f"{vm.name} is {node}: creating it again")
        execute([commands.create(vm)] if node == GONE else [commands.delete(vm), commands.create(vm)])
        wait(vm, poll)
    workers = probe(vm)
    run = verdict(workers)
    report(f"{vm.name} is READY, its run {run} ({', '.join(workers)})")
    if run == "unsynced":
        execute([*commands.sync(vm, archive), commands.start(vm)])
    elif run == "interrupted" or (run == "failed" and restart_failed):
        execute([commands.start(vm)])
    return run


def watch(vm: Settings, archive: Path, poll: float) -> None:
    """Resume until the run is finished. Commands that fail, such as `create` without capacity, are tried again.

    Raises:
      CommandError: if the run fails. A run that had failed before is started once more.
    """
    restart_failed = True
    while True:
        try:
            run = resume(vm, archive, poll, restart_failed)
            if run == "finished":
                return
            if run == "failed" and not restart_failed:
                break
            restart_failed = False
        except CommandError as failure:
            report(f"{failure}; next try in {poll:g} s")
        time.sleep(poll)
    raise CommandError(f"the run on {vm.name} failed; see its log: logs {vm.name}")


def act(args: argparse.Namespace, vm: Settings, path: Path) -> None:
    """Run the command, or print its shell commands."""
    archive = path.with_suffix(".tar.gz")
    if args.dry_run or args.verb in ("sync", "run", "logs"):
        execute(commands.plan(vm, args, archive), args.dry_run)
        if args.verb == "run" and not args.dry_run:
            save_settings(path, vm)
    elif args.verb == "create":
        save_settings(path, vm)  # first, so that `delete` works for a VM whose creation was interrupted
        execute([commands.create(vm)])
        wait(vm, args.poll)
    elif args.verb == "resume":
        (watch if args.watch else resume)(vm, archive, args.poll)
    elif args.verb == "status":
        now = state(vm)
        print(f"{vm.name}: {now}")
        if now == "READY":
            workers = probe(vm)
            print(f"run: {verdict(workers)} ({', '.join(workers)})")
    else:
        if state(vm) != GONE:
            execute([commands.delete(vm)])
        path.unlink()
        archive.unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> int:
    """The exit status: 0, 2 for bad input, or that of a command that failed."""
    try:
        args = parse(sys.argv[1:] if argv is None else argv)
        vm, path = checked_settings(args)
        if not args.dry_run and not shutil.which("gcloud"):
            raise ValueError("gcloud must be installed (https://cloud.google.com/sdk/docs/install), got none on PATH")
        act(args, vm, path)
    except (CommandError, ValueError, OSError) as error:
        report(f"error: {error}")
        return error.status if isinstance(error, CommandError) else 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
