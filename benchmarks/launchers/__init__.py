"""Launchers. A module starts the processes of the cells with `run(commands, jobs) -> exit codes`, or has `submit(run)`."""
