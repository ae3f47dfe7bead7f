"""One verb of `dynaurora` a module: its arguments, and a run that returns an Outcome. Their table: `pipeline.cli`."""
