"""kill -9 at every step of a job, at random moments, and again while it goes on."""

from __future__ import annotations

import random

import pytest


def test_the_job_has_over_a_hundred_steps(job):
    assert len(job.steps) > 100
    assert {"open", "write", "fdatasync", "fsync", "replace", "unlink", "mkdir", "rmdir"} <= {*job.steps}
    assert len(job.expected) == 7  # three shards, index, config, generation config, manifest


@pytest.mark.slow
def test_killed_before_every_step(job, place):
    for at in range(len(job.steps)):
        out = job.begin(place / str(at))
        assert job.run(out, what="die", at=at).killed
        job.check_readable(out)
        job.finish(out)


@pytest.mark.slow
def test_killed_in_the_middle_of_every_write(job, place):
    for at in [number for number, step in enumerate(job.steps) if step == "write"]:
        out = job.begin(place / str(at))
        assert job.run(out, what="die in the middle", at=at).killed
        job.check_readable(out)
        job.finish(out)


@pytest.mark.slow
def test_killed_again_while_going_on(job, place):
    chance = random.Random(0)
    for number in range(40):
        out = job.begin(place / str(number))
        at = chance.randrange(len(job.steps))
        assert job.run(out, what="die", at=at).killed
        for _ in range(3):  # a later step may not be reached: then the run ends, and the next one is refused
            job.run(out, what="die in the middle", at=chance.randrange(60))
            job.check_readable(out)
        job.finish(out)


@pytest.mark.slow
def test_killed_at_a_hundred_random_moments(job, place):
    for out, _ in job.killed_at_random_moments(place, times=100):
        job.check_readable(out)
        job.finish(out)


def test_a_killed_live_run_starts_again(server, place):
    from folders_of_models import digests
    from fork_server import Trial

    trial = Trial(source="llama", out=str(place / "whole"))
    whole = server.run(trial)
    assert whole.error == "", whole.message
    for at in range(2, len(whole.steps), len(whole.steps) // 12):
        out = place / f"out {at}"
        killed = Trial(source="llama", out=str(out), what="die", at=at)
        assert server.run(killed).killed
        again = server.run(Trial(source="llama", out=str(out)))
        assert again.error == "", again.message
        assert digests(out) == digests(place / "whole")
        assert len(again.steps) >= len(whole.steps) - 5
