"""One module per way to start the cells' processes: `run(commands, jobs) -> exit codes`."""
