"""A model as a row of blocks: finding them, running them in turn, and quantizing each with the data that reaches it."""
