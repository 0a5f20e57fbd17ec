"""Entrypoints in the process of the tests."""

import re

from absl import flags


def parse(line):
    """`flags.FLAGS(line)`, though other commands that were imported here have flags that they cannot do without."""
    while True:
        try:
            return flags.FLAGS(line)
        except flags.IllegalFlagValueError as error:
            missed = re.match(r"flag --(\w+)=None: Flag --\1 must have a value other than None", str(error))
            if missed is None:
                raise
            line = [*line, f"--{missed[1]}=unused"]
