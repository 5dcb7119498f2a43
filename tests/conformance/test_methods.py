"""Every registered method on every architecture that its capabilities claim."""

import pytest

import hfadapt
from hfadapt import plugins
from hfadapt.report.claims import claims
from hfadapt.testing import conformance

# Hundreds of ReLU units would put many kinks into every difference quotient, and their defaults are for large models.
SMALL = {
    "design": hfadapt.Design(r=4, modified=("ffn", "query"), non_linearity="gelu"),
    "parallel": hfadapt.ParallelConfig(8, non_linearity="gelu"),
    "mam": hfadapt.MAM({"num_virtual_tokens": 3, "mlp_size": 8}, {"r": 8, "non_linearity": "gelu"}),
    "unipelt": hfadapt.UniPELT({"num_virtual_tokens": 3, "mlp_size": 8}, {"non_linearity": "gelu"}, {"r": 2}),
}
NAMES = {SMALL.get(name, name): name for name in plugins.methods()}
CASES = conformance.cases(NAMES)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_method_on_architecture(case):
    """All checks on one pair; a pair that is refused must be refused with a reason that names both."""
    reason = case.refused()
    claimed = claims().get(NAMES[case.method])
    if claimed is not None:  # in docs/methods.md
        assert (reason or "").count(claimed[case.model_type]) and bool(reason) == bool(claimed[case.model_type])
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
