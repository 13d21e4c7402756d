"""Commands: one file a command, each with `main(argv) -> int | None`. Nothing imports this package."""
