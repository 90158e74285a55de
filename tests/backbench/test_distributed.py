"""BatchNorm and sums over ranks: two processes equal one on the concatenated batch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import warm
from torch import nn

from backbench import distributed
from backbench.batchnorm import GlobalBatchNorm, synchronise_batchnorm
from backbench.distributed import all_reduce_sum, any_rank

CHANNELS = 3
CASES = {  # shape without the batch axis, samples of rank 0 and of rank 1
    "even": ((CHANNELS, 4, 5), (6, 6)),
    "uneven": ((CHANNELS, 4, 5), (7, 2)),
    "one sample": ((CHANNELS,), (4, 1)),
    "vectors": ((CHANNELS,), (5, 3)),
}


def case_input(case: str) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch and the weights of a loss: float64."""
    shape, counts = CASES[case]
    generator = torch.Generator().manual_seed(len(case))
    x = torch.randn(sum(counts), *shape, generator=generator, dtype=torch.float64) * 3 + 5
    return x, torch.randn(x.shape, generator=generator, dtype=torch.float64)


def prepared(norm: nn.Module) -> nn.Module:
    """Give the norm weights and buffers that change its output."""
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, 2.0, -1.0]))
        norm.bias.copy_(torch.tensor([1.0, -2.0, 0.25]))
        norm.running_mean.copy_(torch.tensor([0.1, 0.2, 0.3]))
        norm.running_var.copy_(torch.tensor([1.5, 0.5, 2.0]))
    return norm.double().train()


def two_steps(norm: nn.Module, x: torch.Tensor, weights: torch.Tensor) -> dict[str, torch.Tensor]:
    """Output, gradients and buffers after two training steps (the second on another scale)."""
    out = {}
    for step, factor in enumerate((1.0, 0.5)):
        leaf = (x * factor).requires_grad_()
        norm.zero_grad()
        y = norm(leaf)
        (y * weights).sum().backward()
        out |= {f"output{step}": y.detach(), f"input gradient{step}": leaf.grad}
        out |= {f"weight gradient{step}": norm.weight.grad.clone(), f"bias gradient{step}": norm.bias.grad.clone()}
    out |= {name: value.clone() for name, value in norm.named_buffers()}
    norm.eval()
    return out | {"evaluation": norm(x).detach()}


def sum_of_squares(rank: int) -> dict[str, torch.Tensor]:
    """Each rank's loss is its own factor times |sum over ranks of x|^2."""
    x = torch.arange(3, dtype=torch.float64).add(10 * rank).requires_grad_()
    total = all_reduce_sum(x)
    ((rank + 1) * total.pow(2).sum()).backward()
    return {"total": total.detach(), "gradient": x.grad, "x": x.detach()}


def low_precision(rank: int) -> dict[str, torch.Tensor]:
    """bfloat16 activations far from zero, as under autocast, with float32 weights."""
    x = low_precision_input().chunk(2)[rank]
    norm = GlobalBatchNorm(CHANNELS).train()
    return {"output": norm(x).detach(), "running_mean": norm.running_mean, "running_var": norm.running_var}


def low_precision_input() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    return (torch.randn(60, CHANNELS, 7, 7, generator=generator) + 20).bfloat16()


def replaced(rank: int) -> dict[str, object]:
    """Apply `synchronise_batchnorm` to a nested module and return the results."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(2, CHANNELS, 1), nn.Sequential(prepared(nn.BatchNorm2d(CHANNELS, eps=1e-3))))
    module[1][0].eval().requires_grad_(False)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    after = synchronise_batchnorm(module, torch.device("cpu"))
    return {
        "type": type(after[1][0]).__name__,
        "settings": (after[1][0].eps, after[1][0].momentum, after[1][0].training),
        "trained": [name for name, parameter in after.named_parameters() if parameter.requires_grad],
        "same state": list(before) == list(after.state_dict())
        and all(torch.equal(before[name], value) for name, value in after.state_dict().items()),
    }


def worker(folder: str) -> None:
    """One of two ranks: joins by torchrun's environment and writes what it computed."""
    rank = distributed.rank()
    torch.set_num_threads(1)
    distributed.init()
    try:
        out: dict[str, object] = {"rank": distributed.rank(), "size": distributed.world_size()}
        for case, (_, counts) in CASES.items():
            x, weights = (t.split(counts)[rank] for t in case_input(case))
            out[case] = two_steps(prepared(GlobalBatchNorm(CHANNELS)), x, weights)
        out["sum"] = sum_of_squares(rank)
        out["low precision"] = low_precision(rank)
        out["replaced"] = replaced(rank)
        out["any"] = any_rank(torch.tensor([rank == 0, rank == 1, False])).tolist()
        out["main"] = distributed.is_main()
        distributed.barrier()
        torch.save(out, Path(folder) / f"{rank}.pt")
    finally:
        distributed.shutdown()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    with warm.ranks([__file__, str(folder)]) as ranks:
        assert [process.wait(280) for process in ranks] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


# ---------------------------------------------------------------- one process


@pytest.mark.parametrize("case", CASES)
def test_one_process_equals_torchs_batchnorm(case):
    theirs = nn.BatchNorm1d if len(CASES[case][0]) == 1 else nn.BatchNorm2d
    expected = two_steps(prepared(theirs(CHANNELS)), *case_input(case))
    read = two_steps(prepared(GlobalBatchNorm(CHANNELS)), *case_input(case))
    assert set(read) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(read[name], value, rtol=1e-12, atol=1e-12, msg=name)
    assert read["num_batches_tracked"].item() == 2


@pytest.mark.parametrize("options", [{"affine": False}, {"track_running_stats": False}, {"momentum": 0.3}])
def test_one_process_equals_torchs_batchnorm_with_options(options):
    x, _ = case_input("even")
    ours, theirs = (kind(CHANNELS, dtype=torch.float64, **options) for kind in (GlobalBatchNorm, nn.BatchNorm2d))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-12, atol=1e-12)


def test_too_few_dimensions():
    with pytest.raises(ValueError, match="at least 2 dimensions"):
        GlobalBatchNorm(3)(torch.ones(3))


def test_outside_a_job(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    x = torch.ones(2)
    assert all_reduce_sum(x) is x
    assert any_rank(torch.tensor([True, False])).tolist() == [True, False]
    module = nn.Sequential(nn.BatchNorm1d(2))
    assert synchronise_batchnorm(module, torch.device("cpu")) is module
    assert type(module[0]) is nn.BatchNorm1d
    distributed.barrier()
    distributed.shutdown()


def test_a_rank_is_known_before_the_job_is_joined(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert distributed.rank() == 3
    assert not distributed.is_main()


# ---------------------------------------------------------------- two processes


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_ranks_equal_one_process_on_the_whole_batch(two_ranks, case):
    theirs = nn.BatchNorm1d if len(CASES[case][0]) == 1 else nn.BatchNorm2d
    expected = two_steps(prepared(theirs(CHANNELS)), *case_input(case))
    ranks = [out[case] for out in two_ranks]
    assert set(ranks[0]) == set(expected)
    for name, value in expected.items():
        if name.startswith(("output", "input gradient", "evaluation")):
            read = torch.cat([rank[name] for rank in ranks])
        elif name.startswith(("weight gradient", "bias gradient")):
            read = ranks[0][name] + ranks[1][name]  # each rank's own samples; DDP adds them up
        else:
            torch.testing.assert_close(ranks[0][name], ranks[1][name], rtol=0, atol=0, msg=name)
            read = ranks[0][name]
        torch.testing.assert_close(read, value, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.slow
def test_statistics_of_one_rank_alone_would_differ(two_ranks):
    x, weights = (t.split(CASES["uneven"][1])[0] for t in case_input("uneven"))
    alone = two_steps(prepared(nn.BatchNorm2d(CHANNELS)), x, weights)
    assert (alone["output0"] - two_ranks[0]["uneven"]["output0"]).abs().max() > 1e-2


@pytest.mark.slow
def test_the_backward_pass_of_the_sum_adds_up_the_ranks(two_ranks):
    x = [out["sum"]["x"] for out in two_ranks]
    total = x[0] + x[1]
    for out in two_ranks:
        assert torch.equal(out["sum"]["total"], total)
        # d(1 |total|^2)/dx + d(2 |total|^2)/dx: both ranks' losses depend on every rank's x
        assert torch.equal(out["sum"]["gradient"], (1 + 2) * 2 * total)


@pytest.mark.slow
def test_low_precision_activations_have_statistics_in_full_precision(two_ranks):
    norm = nn.BatchNorm2d(CHANNELS).train()
    expected = norm(low_precision_input()).detach()
    read = torch.cat([out["low precision"]["output"] for out in two_ranks])
    torch.testing.assert_close(read.float(), expected.float(), rtol=0.01, atol=0.005)
    for out in two_ranks:
        for name, value in norm.named_buffers():
            if name != "num_batches_tracked":
                torch.testing.assert_close(out["low precision"][name].detach(), value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.slow
def test_low_precision_activations_stay_in_low_precision(two_ranks):
    expected = nn.BatchNorm2d(CHANNELS).train()(low_precision_input()).dtype
    assert [out["low precision"]["output"].dtype for out in two_ranks] == [expected] * 2


@pytest.mark.slow
def test_every_batchnorm_is_replaced_and_keeps_its_state(two_ranks):
    for out in two_ranks:
        assert out["replaced"] == {"type": "GlobalBatchNorm", "settings": (1e-3, 0.1, False), "same state": True,
                                   "trained": ["0.weight", "0.bias"]}  # fmt: skip


@pytest.mark.slow
def test_ranks_know_each_other(two_ranks):
    assert [(out["rank"], out["size"], out["main"]) for out in two_ranks] == [(0, 2, True), (1, 2, False)]
    assert [out["any"] for out in two_ranks] == [[True, True, False]] * 2


if __name__ == "__main__":
    worker(sys.argv[1])
