"""The command line of `experiments.launch.tpu_vm` and the settings files of VMs."""

import argparse
import dataclasses
import json
import os
import re
from pathlib import Path
from typing import NoReturn

from experiments.launch import commands
from experiments.launch.commands import Settings

SETTINGS_DIR = Path("~/.config/diffax/tpu").expanduser()
VERBS = {
    "create": "create the VM",
    "sync": "copy the working tree to all workers and install it",
    "run": "start training on all workers: run NAME -- FLAGS",
    "resume": "create the VM again if it was preempted, start the run again if it stopped",
    "logs": "print the end of the log",
    "status": "print the state of VM and run",
    "delete": "delete the VM and its settings",
}


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Raise `ValueError`."""
        raise ValueError(message)


def parse(argv: list[str]) -> argparse.Namespace:
    """The arguments up to the first --; `command` has those after it, None without --."""
    parser = Parser(prog="python -m experiments.launch.tpu_vm", description="TPU VMs; see docs/launch.md.")
    parser.set_defaults(worker="0", lines="", follow=False)
    verbs = parser.add_subparsers(dest="verb", metavar="COMMAND", required=True)
    parsers = {verb: verbs.add_parser(verb, help=text, allow_abbrev=False) for verb, text in VERBS.items()}
    for sub in parsers.values():
        sub.add_argument("name", metavar="NAME", nargs="?", help="name of the VM")
        sub.add_argument("--name", dest="named", metavar="NAME", help="the same")
        sub.add_argument("--dry_run", action="store_true", help="print the commands and run nothing")
        sub.add_argument("--settings_dir", type=Path, default=SETTINGS_DIR, help="folder of the settings of VMs")
        sub.add_argument("--poll", default="30", help="seconds between two queries of a state")
    parsers["create"].add_argument("--type", required=True, help="accelerator type, such as v4-8 or v5litepod-16")
    parsers["create"].add_argument("--zone", required=True, help="such as us-central2-b")
    parsers["create"].add_argument("--version", help="runtime version (default: that for JAX on this type)")
    parsers["create"].add_argument("--project", help="default: that of gcloud")
    parsers["create"].add_argument("--spot", action="store_true", help="cheaper, and may be preempted")
    parsers["create"].add_argument("--queued", action="store_true", help="use a queued resource: wait for a free VM")
    parsers["run"].add_argument("--setup", help="shell command run on each worker before each start, such as a mount")
    parsers["resume"].add_argument("--watch", action="store_true", help="resume again until the run is finished")
    parsers["logs"].add_argument("--worker", default="0", help="number of a worker, or all")
    parsers["logs"].add_argument("--lines", default="100", help="number of lines")
    parsers["logs"].add_argument("--follow", action="store_true", help="print new lines as they come")
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.command = argv[end + 1 :] if "--" in argv else None
    return args


def must(name: str, value: str | None, pattern: str, condition: str) -> str:
    """The value; raise `ValueError` if it does not match the pattern."""
    if value is None or not re.fullmatch(pattern, value):
        raise ValueError(f"{name} must be {condition}, got {value!r}")
    return value


def checked(command: list[str] | None) -> tuple[str, ...]:
    """The flags of experiments.train; raise `ValueError` for a config or workdir that would fail on the workers."""
    if command is None:
        raise ValueError("run needs -- and the flags of experiments.train after NAME, got no --")
    parser = Parser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default="")
    parser.add_argument("--workdir")
    flags = parser.parse_known_args(command)[0]
    file = flags.config.split(":")[0]  # a config may be followed by :ARGUMENT
    named = commands.ROOT / "experiments/configs" / f"{file.removesuffix('.py')}.py"
    if Path(file).is_absolute() or not ((commands.ROOT / file).is_file() or named.is_file()):
        raise ValueError(
            f"--config must be the name of a config, or a file by its path from {commands.ROOT}, got {flags.config!r}"
        )
    must("--workdir", flags.workdir, "/.*", "the absolute path of a folder that all workers share (no gs://: mount it)")
    return tuple(command)


def checked_settings(args: argparse.Namespace) -> tuple[Settings, Path]:
    """The settings of the VM and the path of their file; raise `ValueError` for invalid input."""
    name = args.name or args.named
    must("NAME", name, "[a-z]([-a-z0-9]{0,61}[a-z0-9])?", "lower-case letters, digits and -, a letter first")
    path = args.settings_dir / f"{name}.json"
    if args.command is not None and args.verb != "run":
        raise ValueError(f"-- must be used with run only, got it with {args.verb}")
    if args.verb == "create":
        kind = must("--type", args.type, r"v\d+[a-z]*-\d+", "an accelerator type such as v4-8 or v5litepod-16")
        must("--zone", args.zone, r"[a-z]+-[a-z]+\d+-[a-z]", "a zone such as us-central2-b")
        version = args.version or commands.VERSIONS.get(kind.split("-")[0])
        known = ", ".join(commands.VERSIONS)
        version = must("--version", version, r"[\w.-]+", f"a runtime version (only {known} have a default)")
        if path.exists():
            raise ValueError(f"NAME {name!r} is in use, see {path}: resume or delete it")
        vm = Settings(name, kind, args.zone, version, args.project, args.spot, args.queued)
    else:
        vm = load_settings(path)
    args.poll = float(must("--poll", args.poll, r"\d+(\.\d+)?", "a number of seconds"))
    if args.verb == "logs":
        must("--worker", args.worker, r"all|\d+", "the number of a worker or all")
        must("--lines", args.lines, r"\d+", "a number of lines")
    if args.verb == "run":
        setup = vm.setup if args.setup is None else args.setup.strip().rstrip(";")
        must("--setup", setup or "", ".*", "one line")
        vm = dataclasses.replace(vm, command=checked(args.command), setup=setup)
    if args.verb == "resume" and not vm.command:
        raise ValueError(f"NAME {name!r} has no command to resume: use run first")
    return vm, path


def save_settings(path: Path, vm: Settings) -> None:
    """Write the settings atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(dataclasses.asdict(vm), indent=2) + "\n")
    os.replace(part, path)


def load_settings(path: Path) -> Settings:
    """Read settings; raise `ValueError` if there are none or they are damaged."""
    try:
        vm = Settings(**json.loads(path.read_text()))
        return dataclasses.replace(vm, command=tuple(vm.command))
    except FileNotFoundError:
        raise ValueError(f"NAME {path.stem!r} is unknown, there is no {path}: create it first") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"NAME {path.stem!r} has damaged settings in {path}: {error}") from None
