"""Commands: one module or package a command, each with `main(argv) -> int | None`. Nothing imports this package."""
