"""The log file of a cell: what libraries log and warn about, while the terminal shows errors of the engines only."""

import logging
import sys
import warnings

from backbench import logs, progress


def speak(number):
    engine = logging.getLogger("detectron2.engine")
    engine.info("info %d", number)
    engine.warning("warning %d", number)
    engine.error("error %d", number)
    logging.getLogger("other").info("other info %d", number)
    logging.getLogger("other").warning("other warning %d", number)
    warnings.warn(f"python warning {number}", UserWarning, stacklevel=1)
    progress.say(f"said {number}")


def test_the_file_has_what_libraries_log_and_the_terminal_has_no_warnings_of_engines(tmp_path, capsys, monkeypatch):
    log = tmp_path / "log.txt"
    with warnings.catch_warnings(), monkeypatch.context() as patch:
        warnings.simplefilter("always")
        for name in (None, *logs.ENGINES):  # as in a process without pytest, and without an engine's own set-up
            patch.setattr(logging.getLogger(name), "handlers", [])
        with progress.logged("[1/2] ", log):
            speak(1)
        speak(2)
    kept, shown = log.read_text(), capsys.readouterr().err
    for line in (
        "INFO detectron2.engine: info 1",
        "WARNING detectron2.engine: warning 1",
        "ERROR detectron2.engine: error 1",
        "WARNING other: other warning 1",
        "[1/2] said 1",
    ):
        assert sum(written.endswith(line) for written in kept.splitlines()) == 1, line
    assert kept.count("python warning 1") == 1 and "UserWarning" in kept
    assert "other info" not in kept, "the levels of other libraries stay"
    assert "2" not in {line.split()[-1] for line in kept.splitlines()}, "nothing is kept after the cell"
    before = [line for line in shown.splitlines() if line.endswith("1")]
    assert before == ["error 1", "other warning 1", "[1/2] said 1"], "pytest shows Python's warnings itself"
    assert "warning 2" in shown, "the loggers are as before"


def test_python_warnings_are_still_shown(tmp_path, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: shown.append(str(message)))
    with progress.logged("", tmp_path / "log.txt"):
        warnings.warn("look", RuntimeWarning, stacklevel=1)
    warnings.warn("later", RuntimeWarning, stacklevel=1)
    assert shown == ["look", "later"]
    assert "RuntimeWarning" in (text := (tmp_path / "log.txt").read_text()) and "later" not in text


def test_a_logger_that_does_not_propagate_is_kept_once_and_restored(tmp_path, monkeypatch):
    logger = logging.getLogger("detectron2")
    monkeypatch.setattr(logger, "propagate", False)
    monkeypatch.setattr(logger, "level", logging.ERROR)
    before = list(logger.handlers)
    with progress.logged("", tmp_path / "log.txt"):
        logger.warning("below the level that its owner set")
        logger.error("once")
    assert [line.rsplit(": ")[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["once"]
    assert (logger.handlers, logger.propagate, logger.level) == (before, False, logging.ERROR)


def test_a_traceback_keeps_its_lines_and_loses_control_characters(tmp_path):
    with progress.logged("", tmp_path / "log.txt"):
        try:
            raise ValueError("red \x1b[31m")
        except ValueError:
            logging.getLogger("mmdet").warning("failed", exc_info=sys.exc_info())
    lines = (tmp_path / "log.txt").read_text().splitlines()
    assert lines[0].endswith("WARNING mmdet: failed") and lines[-1] == r"ValueError: red \x1b[31m"


def test_a_log_that_cannot_be_written_ends_no_work(tmp_path, capsys):
    with progress.logged("", tmp_path / "absent" / "log.txt"):
        logging.getLogger("mmdet").warning("lost")
        progress.say("said")
    assert capsys.readouterr().err == "said\n"
