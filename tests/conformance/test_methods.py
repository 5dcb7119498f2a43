"""Every registered method on every architecture that its capabilities claim."""

import pytest

from hfadapt import plugins
from hfadapt.cli.claims_table import claims
from hfadapt.method import MethodConfig, expand
from hfadapt.testing import conformance
from tests.conformance.small import SMALL

# Two names of the same configs (houlsby and double_seq_bn) are one case.
NAMES: dict[tuple[MethodConfig, ...] | str, list[str]] = {}
for _name in plugins.methods():
    NAMES.setdefault(expand(SMALL.get(_name, _name)), []).append(_name)
CASES = conformance.cases(NAMES)


def named(case: conformance.Case) -> str:
    return f"{'='.join(NAMES[case.method])}-{case.model_type}"


@pytest.mark.parametrize("case", CASES, ids=named)
def test_method_on_architecture(case):
    """All checks on one pair; a pair that is refused must be refused with a reason that names both."""
    reason = case.refused()
    for name in NAMES[case.method]:
        claimed = claims().get(name, {}).get(case.model_type)  # in docs/methods.md
        assert claimed is None or ((claimed in reason) if reason and claimed else not (reason or claimed))
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


# Every method is traced on bert, with the graph of its backward pass: that holds the same ops on every architecture.
# What differs elsewhere is where the hooks sit, and these sit in every place there is: at attention and its queries,
# beside and behind the feed-forward, at the embeddings, around a layer, and behind the last. `make compile` does all.
PLACES = ("double_seq_bn_inv", "fusion", "lhuc", "pal", "par_bn", "top_layer", "unipelt")
COMPILED = [
    case
    for case in CASES
    if case.model_type == "bert"
    or (case.model_type in conformance.COMPILED_TYPES and set(PLACES) & set(NAMES[case.method]))
]


@pytest.mark.parametrize("case", COMPILED, ids=named)
def test_method_compiles_to_one_graph(case):
    if case.refused() is None:
        conformance.check_compile(case, backend="aot_eager" if case.model_type == "bert" else "eager")


@pytest.mark.compile
@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_pair_compiles_to_one_graph_forward_and_back(case):
    if case.refused() is None:
        conformance.check_compile(case, backend="aot_eager")
