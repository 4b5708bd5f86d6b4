"""What is on disk: woqfx's own checkpoint, written so that a run can be killed at any point, and read as hostile."""
