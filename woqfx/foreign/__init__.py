"""Checkpoints of other programs: how their files are looked at, and how what they hold becomes a module tree's."""
