"""A list of models is of replicas: other models are refused."""

import copy

import pytest

torch = pytest.importorskip("torch")

from activation_store import activations  # noqa: E402


def model(width=4, seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.BatchNorm1d(width), torch.nn.Linear(width, 3)).eval()


def served(models):
    batches = [torch.ones(8, 4) * number for number in range(6)]
    return sum(len(batch) for batch in activations(models, batches, "2", batch_size=8, window=16, merge="round_robin"))


def changed(change):
    tuned = copy.deepcopy(model())
    with torch.no_grad():
        change(tuned)
    return tuned


def test_copies_are_replicas():
    base, loaded = model(), model(seed=1)
    loaded.load_state_dict(base.state_dict())
    with torch.no_grad():
        base[0].bias.fill_(float("nan"))
        loaded[0].bias.fill_(float("nan"))
    loaded[1].register_buffer("scratch", torch.ones(3), persistent=False)
    assert served([base, loaded, copy.deepcopy(base)]) == served([base]) == 48
    transposed = changed(lambda copied: setattr(copied[2].weight, "data", copied[2].weight.data.T.contiguous().T))
    assert served([model(), transposed]) == 48


@pytest.mark.parametrize(("other", "difference"), [
    (lambda: changed(lambda tuned: tuned[2].weight.add_(1e-3)), "'2.weight' has other values"),
    (lambda: changed(lambda tuned: tuned[1].running_mean.add_(1)), "'1.running_mean' has other values"),
    (lambda: model(5), r"'0.weight' has the shape \(4, 4\) in one and \(5, 4\) in the other"),
    (lambda: model().double(), "'0.weight' has the dtype torch.float32 in one and torch.float64 in the other"),
    (lambda: torch.nn.Sequential(*model(), torch.nn.Linear(3, 3)), "only the other has '3.bias'"),
    (lambda: torch.nn.Sequential(*model()[:2], torch.nn.Linear(4, 3, bias=False)), "only the first has '2.bias'"),
])  # fmt: skip
def test_other_models_are_refused_and_what_works_is_said(other, difference):
    with pytest.raises(ValueError, match=f"models 0 and 1 are not copies of one model: {difference}.*call activations for each"):
        activations([model(), other()], [torch.ones(8, 4)], "2", batch_size=8, window=16)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_copy_on_another_device_is_a_replica():
    activations([model(), model().cuda()], [], "2", batch_size=8, window=16).close()
    with pytest.raises(ValueError, match="'2.weight' has other values"):
        activations([model(), changed(lambda tuned: tuned[2].weight.mul_(2)).cuda()], [], "2", batch_size=8, window=16)


def test_a_copy_whose_values_are_not_here_is_compared_by_name_and_shape():
    activations([model(), model().to("meta")], [], "2", batch_size=8, window=16).close()
