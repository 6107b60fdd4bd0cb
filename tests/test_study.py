"""The study: it runs and takes up where it was left, its tables say what its file holds, its extras are what they say."""

import csv
import math
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.adapters import adapters
from benchmarks.schedule import WarmupCosine
from benchmarks.study import arguments, main, possible, runs_of
from benchmarks.study_configuration import configuration
from benchmarks.study_contenders import train
from benchmarks.study_experiments import EXPERIMENTS
from benchmarks.study_extras import NoisyRoots, NoLongSide, RoundedProducts, ShapedRMS, SmallSide, SparseStatistics, SumOfSides
from benchmarks.study_goals import goals
from benchmarks.study_peers import PEERS, Peer, optimizer_of
from benchmarks.study_settings import BASE, FRESH, JOB_NAMES, TUNED, TUNING
from benchmarks.study_store import Result, Run, Store
from benchmarks.study_tables import filled, ratio, summaries, tables
from benchmarks.tasks import JOBS
from shampoo_fn import Config, Eigh, FixedRMS, Kronecker, State, apply_updates, from_dict, init_state, to_dict, update
from shampoo_fn.transform import Clock

MLP = JOBS["mlp"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon to race")
def test_a_tiny_study_fills_its_file_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "study.csv"
    given = ["race-mlp", "stability-regression", "--quick", "--steps", "3", "--out", str(out)]
    main(given)
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [row["optimizer"] for row in rows] == ["adamw", "muon", "shampoo", "shampoo", *["adamw", "shampoo"] * 2]
    assert all(row["at"] == "0 3" and len(row["losses"].split()) == 2 for row in rows)
    assert len({row["losses"].split()[0] for row in rows if row["job"] == "mlp"}) == 1  # the same weights at first
    written = out.read_bytes()
    main(given)
    assert out.read_bytes() == written
    main([*given, "--list"])
    assert "0 of    4 runs missing" in capsys.readouterr().out


def test_tables_take_adamws_best_as_the_goal() -> None:
    experiment = EXPERIMENTS["shampoo-mlp"]
    adamw = {"optimizer": "adamw", "lr": 0.01}
    slow = Result(at=[0, 10, 20], losses=[3.0, 2.0, 1.0], seconds=[0.0, 1.0, 2.0])
    fast = Result(at=[0, 10, 20], losses=[3.0, 0.5, 0.25], seconds=[0.0, 3.0, 6.0])
    runs = [Run.of("mlp", seed, 20, experiment.variants[0].options) for seed in TUNING]
    known = dict.fromkeys(runs, fast) | {Run.of("mlp", seed, 20, adamw): slow for seed in TUNING}
    (line,) = summaries(experiment, runs, known)
    assert (line.seeds, line.final, line.milliseconds) == (3, 0.25, 300.0)
    assert line.steps == pytest.approx(0.8 * 10 / 20)  # 3.0 to 0.5 passes 1.0 after four fifths of ten steps
    assert line.seconds == pytest.approx(0.8 * 3 / 2)


def test_a_result_that_never_gets_there_or_diverges() -> None:
    result = Result(at=[0, 10, 20], losses=[3.0, 4.0, math.nan], seconds=[0.0, 1.0, 2.0])
    assert result.final == math.inf
    assert result.reaches(2.0) == (math.inf, math.inf)
    assert ratio(math.inf) == "never"
    assert result.diverged_at() == 10
    assert result.at_second(0.5) == 3.5


def test_the_file_gives_back_what_was_appended(tmp_path: Path) -> None:
    store, run = Store(tmp_path / "runs.csv"), Run.of("gpt", 1, 20, {"optimizer": "adamw", "lr": 0.5, "nothing": None})
    result = Result(at=[0, 20], losses=[4.5, 0.125], seconds=[0.0, 1.5])
    assert store.read() == {}
    store.append(run, result)
    assert store.read() == {run: result}


def test_the_document_holds_the_tables_of_the_committed_file() -> None:
    options = arguments(["--tables"])
    known = Store(options.out).read()
    groups = {name: (experiment, runs_of(experiment, options)) for name, experiment in EXPERIMENTS.items()}
    written = (Path(__file__).parent.parent / "docs" / "tuning.md").read_text()
    assert written.count("<!-- table ") >= 10
    assert filled(written, tables(groups, known) | goals(known)) == written


@pytest.mark.parametrize("option", ["--out", "--document"])
def test_tables_of_a_file_that_is_not_there_are_refused_by_its_name(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing" / "file"
    with pytest.raises(SystemExit):
        main(["--tables", option, str(missing)])
    assert f"{option} {missing}: there is no such file" in capsys.readouterr().err


def test_settings_are_not_chosen_on_the_seeds_of_the_races() -> None:
    assert not set(TUNING) & set(FRESH)
    for job in JOB_NAMES:
        assert EXPERIMENTS[f"race-{job}"].seeds == FRESH
        assert EXPERIMENTS[f"adamw-{job}"].seeds == TUNING
        tried = [variant.options for variant in EXPERIMENTS[f"adamw-{job}"].variants]
        assert TUNED[job]["adamw"] in tried


@pytest.mark.parametrize("name", JOB_NAMES)
def test_every_job_is_decided_by_its_seed_and_holds_data_out(name: str) -> None:
    job = JOBS[name]
    (inputs, targets), (again, _), (other, _) = (job.batches(seed, 1)[0] for seed in (0, 0, 1))
    held_out = job.held_out()[0]
    assert torch.equal(inputs, again)
    assert not torch.equal(inputs, other)
    assert not (inputs[:, None] == held_out[None, :64]).flatten(2).all(2).any()
    model = job.model(0)
    assert job.loss(model, dict(model.named_parameters()), inputs, targets).isfinite()


def _steps(config: Config, params: dict[str, Tensor], state: State, first: int, last: int) -> tuple[dict[str, Tensor], State]:
    model, batches = MLP.model(0), MLP.batches(0, last)
    for inputs, targets in batches[first:]:
        gradients = torch.func.grad(partial(MLP.loss, model))(params, inputs, targets)
        updates, state = update(gradients, state, config, params)
        params = apply_updates(params, updates)
    return params, state


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    options = {key: value for key, value in BASE.items() if key not in ("optimizer", "lr")} | {"precondition_frequency": 2}
    config = configuration(MLP, WarmupCosine(0.01, 6), options)
    params = {name: parameter.detach() for name, parameter in MLP.model(0).named_parameters()}
    whole, _ = _steps(config, params, init_state(params, config), 0, 6)
    half, state = _steps(config, params, init_state(params, config), 0, 3)
    torch.save({"params": half, "state": to_dict(state, config, half)}, tmp_path / "half.pt")
    loaded = torch.load(tmp_path / "half.pt", weights_only=True)
    resumed, _ = _steps(config, loaded["params"], from_dict(loaded["state"], config, loaded["params"]), 3, 6)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_bfloat16_run_keeps_its_dtype_and_follows() -> None:
    def after(steps: int, **more: str) -> dict[str, Tensor]:
        *_, params = train(MLP, 0, {**TUNED["mlp"]["shampoo"], **more}, steps=steps)
        return dict(params)

    (first, *_), exact, rounded = train(MLP, 0, TUNED["mlp"]["shampoo"], steps=5), after(5), after(5, dtype="bfloat16")
    assert all(value.dtype == torch.bfloat16 for value in rounded.values())
    way = torch.cat([(exact[name] - first[name]).flatten() for name in exact])
    other = torch.cat([(rounded[name].float() - first[name]).flatten() for name in exact])
    assert torch.cosine_similarity(way, other, dim=0) > 0.9


def test_adapters_alone_are_trained_and_their_long_sides_have_what_was_asked_for() -> None:
    job = adapters(rank=4, pretraining=2)
    before = {name: value.clone() for name, value in job.model(0).state_dict().items()}
    for kind in ("adamw", "shampoo"):
        *_, params = train(job, 0, TUNED["gpt"][kind], steps=2)
        assert {name.rpartition(".")[2] for name in params} == {"down", "up"}
        assert not any(torch.equal(value, before[name]) for name, value in params.items())
    params = {"down": torch.zeros(4, 160)}
    options = {key: value for key, value in BASE.items() if key not in ("optimizer", "lr")}
    shapes = []
    for choice in ({}, {"long_side": "full"}, {"long_side": "none"}):
        config = configuration(job, WarmupCosine(0.01, 6), options | choice)
        (entries,) = to_dict(init_state(params, config), config)["down"].values()
        shapes.append([tuple(value.shape) for path, value in entries.items() if ".factors." in path])
    assert shapes == [[(4, 4), (160,)], [(4, 4), (160, 160)], [(4, 4)]]


class Recorded(torch.optim.SGD):
    """Stands in for another package's optimizer: keeps what it was made with."""

    def __init__(self, params: Any, lr: float, **given: Any) -> None:
        super().__init__(params, lr)
        self.given = given


def _packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    modules = {name: ModuleType(name) for name in ("heavyball", "heavyball.utils", "pytorch_optimizer")}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return modules


def test_a_peer_gets_the_options_of_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    modules = _packages(monkeypatch)
    modules["heavyball"].SOAP = Recorded  # type: ignore[attr-defined]
    params = list(MLP.model(0).parameters())
    soap = optimizer_of("heavyball.SOAP", params, {"betas": [0.9, 0.95], "weight_decay": 0.0})
    assert isinstance(soap, Recorded)
    assert soap.given == {"betas": (0.9, 0.95), "weight_decay": 0.0}
    assert soap.param_groups[0]["lr"] == 1.0
    assert soap.param_groups[0]["params"] == params
    assert modules["heavyball.utils"].compile_mode is None


def test_a_peer_for_hidden_matrices_leaves_the_rest_to_adamw(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Recorded] = []

    class Muon(Recorded):
        def __init__(self, params: Any, lr: float, **given: Any) -> None:
            super().__init__(params, lr, **given)
            made.append(self)

    _packages(monkeypatch)["heavyball"].Muon = Muon  # type: ignore[attr-defined]
    *_, last = train(MLP, 0, {"optimizer": "heavyball.Muon", "rest": 0.5, "lr": 0.01, "warmup": 1}, steps=1)
    (muon,) = made
    assert muon.given == {}
    assert [tuple(parameter.shape) for parameter in muon.param_groups[0]["params"]] == [(128, 256), (64, 128)]
    untrained = MLP.model(0).state_dict()
    assert (last["head.weight"] - untrained["head.weight"]).abs().max().item() == pytest.approx(0.005, rel=1e-3)


@pytest.mark.parametrize("package", ["heavyball", "pytorch_optimizer"])
def test_an_absent_peer_names_the_extra(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf'{package}: pip install -e "\.\[peers\]"'):
        optimizer_of(f"{package}.SOAP", [], {})


def test_a_peer_of_no_known_package_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'os.path' is unknown: name a class of heavyball or pytorch_optimizer"):
        optimizer_of("os.path", [], {})


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.label)
@pytest.mark.filterwarnings("ignore:Learning rate changed between steps")  # heavyball's, for every schedule
def test_a_peer_that_is_installed_takes_steps(peer: Peer) -> None:
    pytest.importorskip(peer.options["optimizer"].partition(".")[0])
    *_, params = train(MLP, 0, peer.at(peer.best), steps=3)
    assert all(not torch.equal(params[name], value) for name, value in MLP.model(0).state_dict().items())
    assert all(value.isfinite().all() for value in params.values())


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.label)
def test_a_peer_races_at_the_best_rate_that_was_tried(peer: Peer) -> None:
    known = Store(arguments(["--tables"]).out).read()
    median = {k: sorted(known[Run.of("gpt", seed, 300, peer.at(k))].final for seed in FRESH)[1] for k in peer.tried}
    assert peer.best == min(median, key=median.__getitem__)


def test_noisy_roots_are_off_by_their_level_and_reproducible() -> None:
    factor = torch.randn(2, 8, 8, generator=torch.Generator().manual_seed(0))
    factor = factor @ factor.mT
    exact, first, again = (solver(factor, 0.5).roots for solver in (Eigh(), NoisyRoots(level=0.1), NoisyRoots(level=0.1)))
    assert torch.equal(first, again)
    assert torch.linalg.matrix_norm(first - exact) / torch.linalg.matrix_norm(exact) == pytest.approx(0.1)
    assert torch.equal(first, first.mT)


def test_sparse_statistics_see_every_kth_gradient() -> None:
    params = {"weight": torch.zeros(4, 3)}
    grads = [torch.randn(4, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]

    def factor_after(kronecker: Kronecker, chosen: list[Tensor]) -> Tensor:
        state = kronecker.init(params["weight"])
        for step, grad in enumerate(chosen, start=1):
            state = kronecker.accumulate(grad, state, Clock(torch.tensor(step), torch.tensor(True), True))
        return kronecker.jobs(state, Clock(torch.tensor(len(chosen)), torch.tensor(True), True))["0"].factor

    sparse = factor_after(SparseStatistics(every=2), grads)
    torch.testing.assert_close(sparse, factor_after(Kronecker(), grads[::2]))


def test_products_of_rounded_operands() -> None:
    clock = Clock(torch.tensor(1), torch.tensor(True), True)
    generator = torch.Generator().manual_seed(0)
    grad, left, right = (torch.randn(shape, generator=generator) for shape in ((4, 3), (4, 4), (3, 3)))
    kronecker = RoundedProducts(directions=True)
    state = kronecker.init(grad)
    state = kronecker.accumulate(grad, state, clock)
    low = grad.bfloat16().float()
    torch.testing.assert_close(kronecker.jobs(state, clock)["0"].factor, low @ low.mT)
    for mode, root in (("0", left), ("1", right)):
        state.roots[mode] = state.roots[mode]._replace(inverse_root=root + root.mT)
    found = kronecker.precondition(grad, state, clock)
    first = (low.mT @ (left + left.mT).bfloat16().float()).mT  # [4, 3]
    torch.testing.assert_close(found, first.bfloat16().float() @ (right + right.mT).bfloat16().float())
    exact = (left + left.mT) @ grad @ (right + right.mT)
    torch.testing.assert_close(RoundedProducts().precondition(grad, state, clock), exact)
    assert 1e-4 < torch.linalg.matrix_norm(found - exact) / torch.linalg.matrix_norm(exact) < 1e-2


def test_a_sum_of_sides_is_what_each_does_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    update_, left, right = (torch.randn(shape, generator=generator) for shape in ((4, 3), (4, 4), (3, 3)))
    state = SumOfSides().init(update_)
    for mode, root in (("0", left + left.mT), ("1", right + right.mT)):
        state.roots[mode] = state.roots[mode]._replace(inverse_root=root)
    expected = (left + left.mT) @ update_ + update_ @ (right + right.mT)
    torch.testing.assert_close(
        SumOfSides().precondition(update_, state, Clock(torch.tensor(1), torch.tensor(True), True)), expected
    )


def test_one_side_has_one_factor_and_shapes_have_their_lengths() -> None:
    assert list(SmallSide().modes((4, 3))) == ["1"]
    assert list(NoLongSide(factors="auto").modes((2, 160))) == ["0"]
    assert list(NoLongSide(factors="auto").modes((4, 64))) == ["0", "1"]
    clock = Clock(torch.tensor(1), torch.tensor(True), True)
    tall, wide = torch.ones(8, 2), torch.ones(2, 8)
    for update_, factor in ((tall, 2.0), (wide, 1.0)):
        length = ShapedRMS(0.2, "tall").length(update_, (), clock)
        assert length == pytest.approx(factor * FixedRMS(0.2).length(update_, (), clock).item())


def test_a_whole_study_leaves_out_absent_peers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.study_peers.find_spec", lambda name: None)
    runs = [Run.of("gpt", 0, 1, {"optimizer": kind, "lr": 0.01}) for kind in ("adamw", "heavyball.SOAP", "heavyball.Muon")]
    assert possible(runs) == runs[:1]
    assert capsys.readouterr().err.count("heavyball") == 1
