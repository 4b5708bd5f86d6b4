"""Every step fails once, in every usual way: a clear error, nothing lost, and the next run completes the job."""

from __future__ import annotations

import errno

import pytest

ERRORS = {
    errno.ENOSPC: "free some space",
    errno.EIO: "the device failed; check it",
    errno.EROFS: "mount it writable",
    errno.EACCES: "have its permissions changed",
}


@pytest.mark.slow
def test_every_step_fails_once(job, place):
    others = [errno.EIO, errno.EROFS, errno.EACCES]
    for at, step in enumerate(job.steps):
        for number in (errno.ENOSPC, others[at % 3]):
            out = job.begin(place / f"{at} {number}")
            failed = job.run(out, what="errno", number=number, at=at)
            if failed.error == "":
                # A folder that may not be opened cannot be synced: that alone is no error.
                assert (step, number) == ("open", errno.EACCES)
                continue
            assert str(out.parent) in failed.message
            if at == 0:  # looking for an unfinished run: reading, not writing
                assert (failed.error, "check its permissions" in failed.message) == ("CheckpointError", True)
            else:
                assert (failed.error, ERRORS[number] in failed.message) == ("OutputError", True), failed.message
            job.check_readable(out)
            job.finish(out)
