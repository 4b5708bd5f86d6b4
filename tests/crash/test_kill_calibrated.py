"""A run that looks at data is killed, meets errors and power cuts: it goes on behind the last finished block."""

from __future__ import annotations

import errno

import pytest
from disk import LOSSES

from woqfx.disk.journal import Journal
from woqfx.disk.output import JOURNAL, WORK


@pytest.mark.slow
def test_killed_before_every_step(calibrated_job, place):
    for at in range(0, len(calibrated_job.steps), 5):
        out = calibrated_job.begin(place / str(at))
        assert calibrated_job.run(out, what="die", at=at).killed
        calibrated_job.check_readable(out)
        calibrated_job.finish(out)


@pytest.mark.slow
def test_killed_in_the_middle_of_writes(calibrated_job, place):
    writes = [number for number, step in enumerate(calibrated_job.steps) if step == "write"]
    for at in writes[::6]:
        out = calibrated_job.begin(place / str(at))
        assert calibrated_job.run(out, what="die in the middle", at=at).killed
        calibrated_job.check_readable(out)
        calibrated_job.finish(out)


@pytest.mark.slow
def test_killed_at_fifty_random_moments_and_again_on_the_way(calibrated_job, place):
    for out, moment in calibrated_job.killed_at_random_moments(place, times=50):
        calibrated_job.run(out, every_item=False, seconds=moment)
        calibrated_job.check_readable(out)
        calibrated_job.finish(out)


@pytest.mark.slow
def test_killed_around_the_end_of_each_block_and_of_the_next(gptq_job, place):
    """What a block gave is written, the journal speaks of it, and what the one before it gave is removed."""
    ends = [number for number, step in enumerate(gptq_job.steps) if step == "unlink"][:2]
    for end in ends:
        for at in range(end - 8, end + 3):
            out = gptq_job.begin(place / str(at))
            assert gptq_job.run(out, what="die", at=at).killed
            gptq_job.run(out, what="die", at=9 + at % 17)
            gptq_job.check_readable(out)
            gptq_job.finish(out)


@pytest.mark.slow
def test_the_power_fails(calibrated_job, place):
    for at in range(1, len(calibrated_job.steps), 11):
        parent = place / str(at)
        calibrated_job.begin(parent / "live")
        image = parent / "image"
        loss = LOSSES[at % len(LOSSES)]
        cut = calibrated_job.run(parent / "live" / "out", what="power", at=at, loss=loss, seed=at, image=str(image))
        assert cut.error == "PowerCut", cut.message
        calibrated_job.check_readable(image / "out")
        calibrated_job.finish(image / "out")


@pytest.mark.slow
def test_steps_fail(calibrated_job, place):
    for at in range(2, len(calibrated_job.steps), 11):
        out = calibrated_job.begin(place / str(at))
        failed = calibrated_job.run(out, what="errno", number=errno.ENOSPC, at=at)
        assert failed.error == "OutputError", (at, calibrated_job.steps[at], failed)
        assert "free some space" in failed.message
        calibrated_job.check_readable(out)
        calibrated_job.finish(out)


def stopped_behind_a_block(job, place):
    """An unfinished run whose journal refers to activations, and their file."""
    for at in range(len(job.steps) // 3, len(job.steps), 5):
        out = job.begin(place / str(at))
        assert job.run(out, what="die", at=at).killed
        contents = Journal.peek(out / JOURNAL)
        found = [record["facts"]["block"] for record in contents.records if "block" in (record.get("facts") or {})]
        if found and found[-1]["activations"]:
            return out, out / WORK / found[-1]["activations"]["file"]
    raise AssertionError("no journal refers to activations")


@pytest.mark.parametrize("damage", ["altered", "cut short", "gone"])
def test_activations_that_are_not_as_they_were_are_an_error(calibrated_job, place, damage):
    out, file = stopped_behind_a_block(calibrated_job, place)
    if damage == "gone":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content if damage == "altered" else content[:-64])
    failed = calibrated_job.run(out)
    assert failed.error == "CheckpointError"
    assert str(file) in failed.message and "overwrite=True" in failed.message
    assert calibrated_job.run(out, overwrite=True).error == ""


def test_nothing_but_the_checkpoint_is_left(calibrated_job):
    names = set(calibrated_job.expected)
    assert {"woqfx.json", "woqfx-report.json", "config.json"} <= names
    assert not [name for name in names if "activations" in name or "unfinished" in name]
