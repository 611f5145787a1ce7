"""Python imports this by its name in every job of these tests: trainings that take their time.

Each epoch sleeps a little, so that a training lasts until its test has done something to it, on a
fast machine, and several at once leave a slow one its processors. One may also be told to grow.
"""

import os
import time
from pathlib import Path

from workflow.storage.journal import Journal

write = Journal.write
hoard = []


def slowly(self, event: str, **values) -> None:
    if event == "epoch":
        time.sleep(float(os.environ["EVOVIT_TEST_PACE_S"]))
        if not hoard and Path(os.environ.get("EVOVIT_TEST_GROWS", "/nowhere")).exists():
            hoard.append(b"x" * 1_000_000_000)
    write(self, event, **values)


if "EVOVIT_TEST_PACE_S" in os.environ:
    Journal.write = slowly
