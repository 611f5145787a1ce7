"""Signals that ask a job to stop."""

import pytest

from workflow.runtime import preemption
from workflow.runtime.preemption import StopFlag, Stopped


def test_other_ranks_leave_the_end_to_the_first(monkeypatch):
    waited = []
    monkeypatch.setattr(preemption.time, "sleep", waited.append)
    with pytest.raises(Stopped), StopFlag() as flag:
        flag.end_job(is_first=False)
    assert waited == [preemption.WAIT_FOR_FIRST_RANK_S]
