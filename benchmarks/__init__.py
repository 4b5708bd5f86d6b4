"""How fast woqfx is, and whether it became slower. `docs/benchmarks.md` says how to run these and what they mean."""
