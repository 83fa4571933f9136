"""The table that a user brings: how it is read, what its columns must hold, and what is wrong with it."""
