"""The power fails at every step: whatever of the unsynced bytes and names is lost, the job ends the same."""

from __future__ import annotations

import pytest
from disk import LOSSES


@pytest.mark.slow
def test_power_fails_at_every_step(job, place):
    for at in range(len(job.steps)):
        for loss in ("all", LOSSES[1 + at % 3]):
            parent = place / f"{at} {loss}"
            image = parent / "image"
            job.begin(parent / "live")
            cut = job.run(parent / "live" / "out", what="power", at=at, loss=loss, seed=at, image=str(image))
            assert cut.error == "PowerCut"
            job.check_readable(image / "out")
            job.finish(image / "out")
