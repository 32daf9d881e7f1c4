"""What the platform's process says on stderr: lines of its own form, whoever says them."""

from __future__ import annotations

import subprocess
import sys

BEGIN = "import logging, warnings, structlog; from shellwego.boot.logs import log_to_stderr; log_to_stderr();"


def said(code: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", BEGIN + code], check=True, capture_output=True, text=True)
    return done.stderr.splitlines()


def test_libraries_speak_in_the_platforms_form() -> None:
    lines = said(
        "structlog.get_logger().warning('ours', port=80);"
        "logging.getLogger('asyncio').warning('%s was never retrieved', 'it');"
        "warnings.warn('old')"
    )
    assert [line.split(" ", 1)[0][:10] for line in lines] == ["timestamp="] * 3
    assert "level='warning' event='ours' port=80" in lines[0]
    assert "level='warning' event='it was never retrieved' logger='asyncio'" in lines[1]
    assert "old" in lines[2]


def test_an_error_with_its_trace_is_one_line() -> None:
    (line,) = said("""
try:
    raise ValueError('because')
except ValueError:
    logging.getLogger('uvicorn.error').exception('Exception in ASGI application')""")
    assert "level='error' event='Exception in ASGI application' logger='uvicorn.error'" in line
    assert "ValueError: because" in line
    assert "Traceback" in line


def test_whatever_is_in_a_word_it_stays_a_word_of_its_line() -> None:
    words = "a\r\nb\x1b[31m\x07\u202e\u2028\x85c\ud800"
    lines = said(
        f"words = {words!r}\n"
        "structlog.get_logger().warning('ours', words=words)\n"
        "logging.getLogger('asyncio').warning('it said %s', words)\n"
        "try:\n    raise ValueError(words)\n"
        "except ValueError:\n    structlog.get_logger().exception('failed')"
    )
    assert [line.split("=", 1)[0] for line in lines] == ["timestamp"] * 3
    assert all(line.isprintable() for line in lines)


def test_what_a_stranger_may_cause_at_will_and_what_is_of_no_value_is_not_said() -> None:
    assert not said(
        "logging.getLogger('uvicorn.error').warning('Invalid HTTP request received.');"
        "logging.getLogger('uvicorn.error').error('ASGI callable returned without completing handshake.');"
        "logging.getLogger('alembic.runtime.migration').info('Running upgrade')"
    )
