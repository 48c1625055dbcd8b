"""The science of the demo: equations of state of fcc metals, as a user would write them.

    scan   energies of one metal at many volumes, shared by the MPI ranks of a task
    fit    a Birch-Murnaghan equation of state through what the ranks of one scan return
    summary  lattice constants and bulk moduli from all fits, next to experiment

Lengths are in Angstrom, energies in eV per atom, bulk moduli in GPa.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fsbroker.cli.demo.tasklog import running

STRAIN = 0.03
"""Lattice constants of a scan reach from 1 - STRAIN to 1 + STRAIN of the experimental one."""


class Experiment(NamedTuple):
    """Measured at room temperature.

    Attributes:
        lattice_constant: Angstrom. bulk_modulus: GPa, isothermal.
    """

    lattice_constant: float
    bulk_modulus: float


# C. Kittel, Introduction to Solid State Physics, 8th edition: lattice constants from
# chapter 1, table 3; bulk moduli from chapter 3, table 3 (after K. Gschneidner 1964).
# These are the metals that ASE's EMT has serious parameters for: K. W. Jacobsen,
# P. Stoltze, J. K. Norskov, Surf. Sci. 366, 394 (1996).
EXPERIMENT = {
    "Al": Experiment(4.05, 72.2),
    "Ni": Experiment(3.52, 186.0),
    "Cu": Experiment(3.61, 137.0),
    "Pd": Experiment(3.89, 180.8),
    "Ag": Experiment(4.09, 100.7),
    "Pt": Experiment(3.92, 278.3),
    "Au": Experiment(4.08, 173.2),
}


def scan(metal: str, points: int, cells: int) -> dict[str, Any]:
    """This rank's share of an energy-volume curve.

    Args:
        points: volumes of the whole curve.
        cells: cubic cells of four atoms along each edge of the box. More of them change
            nothing but the time it takes.
    """
    from mpi4py import MPI

    rank, size = MPI.COMM_WORLD.Get_rank(), MPI.COMM_WORLD.Get_size()
    with running(f"scan {metal}", rank, size):
        volumes, energies = curve(metal, points, cells, slice(rank, None, size))
    return {"rank": rank, "size": size, "volumes": volumes, "energies": energies}


def curve(metal: str, points: int, cells: int, share: slice) -> tuple[list[float], list[float]]:
    """Volumes and energies per atom, at some of the points."""
    import numpy as np
    from ase.build import bulk
    from ase.calculators.emt import EMT

    volumes, energies = [], []
    for scale in np.linspace(1 - STRAIN, 1 + STRAIN, points)[share]:
        lattice_constant = EXPERIMENT[metal].lattice_constant * scale
        atoms = bulk(metal, "fcc", a=lattice_constant, cubic=True) * cells
        atoms.calc = EMT()  # type: ignore[no-untyped-call]
        volumes.append(float(atoms.get_volume() / len(atoms)))
        energies.append(float(atoms.get_potential_energy() / len(atoms)))
    return volumes, energies


def fit(metal: str, shares: list[dict[str, Any]]) -> dict[str, Any]:
    """The minimum of one metal's curve, and its curvature there.

    Args:
        shares: what the ranks of a `scan` returned.
    """
    with running(f"fit {metal}"):
        points = sorted(
            point
            for share in shares
            for point in zip(share["volumes"], share["energies"], strict=True)
        )
        return {"metal": metal, "points": len(points), **equation_of_state(points)}


def equation_of_state(points: list[tuple[float, float]]) -> dict[str, float]:
    """Birch-Murnaghan's, fitted to volumes and energies per atom.

    Returns:
        ``lattice_constant``, ``bulk_modulus``, and the ``misfit``: root mean square, eV.
    """
    import numpy as np
    from ase import units
    from ase.eos import EquationOfState

    volumes, energies = np.array(points).T
    equation = EquationOfState(  # type: ignore[no-untyped-call]
        volumes, energies, eos="birchmurnaghan"
    )
    volume, _, modulus = equation.fit()  # type: ignore[no-untyped-call]
    misfit = equation.func(volumes, *equation.eos_parameters) - energies
    return {
        "lattice_constant": float((4 * volume) ** (1 / 3)),
        "bulk_modulus": float(modulus / units.GPa),
        "misfit": float(np.sqrt(np.mean(misfit**2))),
    }


def summary(fits: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All fits, each with how far it is from experiment, in percent."""
    with running("summary"):
        return [{**one, **_deviations(one)} for one in fits]


def _deviations(one: dict[str, Any]) -> dict[str, float]:
    measured = EXPERIMENT[one["metal"]]._asdict()
    return {f"{name}_off": 100 * (one[name] / value - 1) for name, value in measured.items()}
