"""The command line of the library: one module a command, and `cli`, which gathers them."""
