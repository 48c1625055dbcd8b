"""Libraries that take an Executor, or its `map`, take this one: unmodified, unaware of it.

Each is imported by its own test: workers import this module, for its functions.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
from collections.abc import Iterator

import pytest

from fsbroker import ClusterExecutor

PATIENCE = 30.0


@pytest.fixture(scope="module")
def exe(tmp_path_factory) -> Iterator[ClusterExecutor]:
    spool = tmp_path_factory.mktemp("spool")
    with ClusterExecutor(spool, max_workers=2, idle_timeout=5) as executor:
        yield executor


def square(x):
    return x * x


def bowl(x):
    return float(((x - 0.5) ** 2).sum())


def log_probability(x):
    return -0.5 * float((x**2).sum())


# -- asyncio -------------------------------------------------------------------------------


def test_run_in_executor(exe):
    async def main():
        loop = asyncio.get_running_loop()
        calls = (loop.run_in_executor(exe, square, n) for n in range(5))
        return await asyncio.gather(*calls)

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_wrapped_futures(exe):
    async def main():
        wrapped = [asyncio.wrap_future(exe.submit(square, n)) for n in range(5)]
        done, pending = await asyncio.wait(wrapped, timeout=PATIENCE)
        assert not pending
        return sorted(one.result() for one in done)

    assert asyncio.run(main()) == [0, 1, 4, 9, 16]


def test_gather_takes_futures_as_they_are(exe):
    async def main():
        async def slowly(n):
            return await exe.submit(square, n)

        futures = [exe.submit(square, n) for n in range(3)]
        return await asyncio.gather(*futures, slowly(10))

    assert asyncio.run(main()) == [0, 1, 4, 100]


# -- others --------------------------------------------------------------------------------


def test_scipy(exe):
    import scipy.integrate
    import scipy.optimize

    found = scipy.optimize.differential_evolution(
        bowl, [(0, 1)] * 2, workers=exe.map, updating="deferred", maxiter=4, popsize=6, rng=1
    )
    assert found.x == pytest.approx([0.5, 0.5], abs=0.2)
    value, _ = scipy.integrate.quad_vec(square, 0, 3, workers=exe.map)
    assert value == pytest.approx(9)


def test_tqdm(exe):
    from tqdm import tqdm

    futures = [exe.submit(square, n) for n in range(20)]
    done = tqdm(concurrent.futures.as_completed(futures, PATIENCE), total=20, disable=True)
    assert sorted(future.result() for future in done) == [n * n for n in range(20)]
    assert list(tqdm(exe.map(square, range(20)), disable=True)) == [n * n for n in range(20)]


def test_tqdm_as_its_process_pool(tmp_path, monkeypatch):
    """`process_map` makes its pool itself, with the arguments of a process pool."""
    from tqdm.contrib.concurrent import process_map

    def pool(max_workers, initializer, initargs):
        assert initializer is not None  # sets a lock of the bar: workers here draw none
        return ClusterExecutor(tmp_path / "spool", max_workers=max_workers)

    monkeypatch.setattr("concurrent.futures.ProcessPoolExecutor", pool)
    found = process_map(square, range(10), max_workers=2, chunksize=2, disable=True)
    assert found == [n * n for n in range(10)]


def test_dask(exe):
    import dask
    import dask.array

    array = dask.array.arange(1000, chunks=100)
    assert (array**2).sum().compute(scheduler=exe) == sum(n * n for n in range(1000))
    with dask.config.set(pool=exe, scheduler="processes"):
        assert dask.delayed(square)(dask.delayed(square)(3)).compute() == 81


def test_emcee(exe):
    import emcee
    import numpy as np

    sampler = emcee.EnsembleSampler(6, 2, log_probability, pool=exe)
    start = np.random.default_rng(1).normal(size=(6, 2))
    sampler.run_mcmc(start, 5)
    assert sampler.get_chain().shape == (5, 6, 2)
    alone = emcee.EnsembleSampler(6, 2, log_probability)
    assert alone.compute_log_prob(start)[0] == pytest.approx(sampler.compute_log_prob(start)[0])


def test_adaptive(exe):
    import adaptive

    learner = adaptive.Learner1D(square, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=12, executor=exe, ntasks=2)
    assert learner.npoints >= 12
    assert all(y == x * x for x, y in learner.data.items())
