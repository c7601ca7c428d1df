"""What a person sees while a run goes on: one line per start and end, the stages' own lines below.

Lines go to stderr through logging, so that a scheduled run leaves the same text in its log.
"""

import logging
import sys
import time

_LOGGER = logging.getLogger("samovar")


def use_terminal() -> None:
    """Send the lines of this module to stderr, once, whatever Prefect does with logging."""
    if _LOGGER.handlers:
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Elapsed("%(elapsed)s  %(message)s"))
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False


def say(text: str) -> None:
    """One line of the run itself."""
    _LOGGER.info("%s", text)


def say_stage(stage: str, text: str) -> None:
    """One line about a stage: `12:31  finetune              ran, 74.2 s`."""
    _LOGGER.info("%-22s %s", stage, text)


def say_output(stage: str, line: str) -> None:
    """One line a stage wrote, indented, with its stage since two may run side by side."""
    _LOGGER.info("    %-18s | %s", stage, line)


class _Elapsed(logging.Formatter):
    """Puts minutes and seconds since the process started before a line."""

    def __init__(self, layout: str) -> None:
        super().__init__(layout)
        self._started = time.time()

    def format(self, record: logging.LogRecord) -> str:
        seconds = int(record.created - self._started)
        record.elapsed = f"{seconds // 60:3d}:{seconds % 60:02d}"
        return super().format(record)
