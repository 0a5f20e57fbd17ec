"""Entry points run inside the test process."""

import re

from absl import flags


def parse(line):
    """`flags.FLAGS(line)`, with the value "unused" for required flags of other commands imported in this process."""
    while True:
        try:
            return flags.FLAGS(line)
        except flags.IllegalFlagValueError as error:
            missing = re.match(r"flag --(\w+)=None: Flag --\1 must have a value other than None", str(error))
            if missing is None:
                raise
            line = [*line, f"--{missing[1]}=unused"]
