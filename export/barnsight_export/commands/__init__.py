"""One module per command of `barnsight-export`: `add_parser(subparsers)` and `run(args) -> exit code`."""
