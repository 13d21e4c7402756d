"""Settings that cannot work are refused with one sentence."""

import pytest

from sttts_jax.pruning.config import METHODS, PruneConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "topk"}, "pruning.method='topk' is unknown; choose one of scorer, random"),
        ({"packing": "rows"}, "pruning.packing='rows' is unknown"),
        ({"rescale": "softmax"}, "pruning.rescale='softmax' is unknown"),
        ({"positions": "closed"}, "pruning.positions='closed' is unknown"),
        ({"fraction": "1"}, "pruning.fraction=1 is out of range"),
        ({"fraction": "lots"}, "pruning.fraction='lots' is not a number"),
        ({"refill": True}, "pruning.refill=True needs pruning.packing='bins'"),
        ({"aux_weight": -1.0}, "pruning.aux_weight=-1.0 must not be negative"),
    ],
)
def test_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PruneConfig(**change).check()


@pytest.mark.parametrize("method", METHODS)
def test_what_a_method_means(method: str) -> None:
    config = PruneConfig(method=method, fraction="0.4").check()
    assert config.has_scorer == (method in ("scorer", "soft_only"))
    assert config.removed == ("0" if method in ("soft_only", "none") else "0.4")
