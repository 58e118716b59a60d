"""Load the conformance suite into pytest. Its parts are in spec/suite."""

import pytest

pytest.register_assert_rewrite("spec.suite")

pytest_plugins = [
    "spec.suite.plugin",  # clauses, options, limits, progress and the report
    "spec.suite.harness",  # fixtures: the fake env and the real scene
    "spec.suite.processes",  # fixtures: code in processes of its own
]
