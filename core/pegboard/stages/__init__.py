"""One module per stage, each with `run(run, progress) -> facts`."""
