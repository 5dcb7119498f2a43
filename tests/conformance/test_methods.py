"""Every registered method on every architecture that its capabilities claim."""

import pytest

from hfadapt import plugins
from hfadapt.testing import conformance

CASES = conformance.cases(list(plugins.methods()))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_method_on_architecture(case):
    """All checks on one pair; a pair that is refused must be refused with a reason that names both."""
    reason = case.refused()
    if reason is not None:
        assert case.configs[0].method in reason or case.model_type in reason
        return
    failures = []
    for check in conformance.CHECKS:
        try:
            check(case)
        except Exception as error:  # collected, so that one run shows every broken property of the pair
            failures.append(f"{check.__name__}: {type(error).__name__}: {error}")
    assert not failures, "\n".join(failures)


COMPILED = [c for c in CASES if c.model_type in conformance.COMPILED_TYPES]


@pytest.mark.parametrize("case", COMPILED, ids=str)
def test_method_compiles_to_one_graph(case):
    if case.refused() is None:
        conformance.check_compile(case)
