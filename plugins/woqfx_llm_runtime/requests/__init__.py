"""Many requests on one engine: each step of the engine serves all that are under way."""
