"""`python -m backbench` is the command `backbench`."""

from __future__ import annotations

import signal

if __name__ == "__main__":
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # until the command begins: no traceback
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from benchmarks.cli import main

    main()
