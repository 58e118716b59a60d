"""The conformance suite: what the tests work with, and the pytest plugin that judges."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
DEFAULT_IMPLEMENTATION = "video_wrapper:VideoWrapper"
