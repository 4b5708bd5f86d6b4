"""A model that can be held up, and slowed down, while a server uses it."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager


class Held:
    """What a test knows of a model and can do to it. It waits before its first step until `go_on`."""

    def __init__(self, steps_apart, error, sound_steps):
        self.steps = 0
        self.running = 0
        self._steps_apart, self._error, self._sound_steps = steps_apart, error, sound_steps
        self._began, self._may = threading.Event(), threading.Event()

    def before_step(self, *_):
        self._began.set()
        assert self._may.wait(60)
        self.steps += 1
        time.sleep(self._steps_apart)
        if self._error is not None and self.steps > self._sound_steps:
            raise self._error

    def wait_until_it_runs(self):
        assert self._began.wait(60)

    def go_on(self):
        self._may.set()


@contextmanager
def busy(generator, *, steps_apart=0.0, error=None, sound_steps=0):
    """The generator's model, held; after some steps, if an `error` is given, it breaks."""
    held = Held(steps_apart, error, sound_steps)
    run = generator.run

    def counted(requests):
        held.running += 1
        try:
            run(requests)
        finally:
            held.running -= 1

    hook = generator.model.register_forward_pre_hook(held.before_step)
    generator.run = counted
    try:
        yield held
    finally:
        held.go_on()
        hook.remove()
        del generator.run
