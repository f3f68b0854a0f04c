"""How long a reader is fuzzed."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fuzz-seconds", type=float, default=300.0, help="for each reader")
