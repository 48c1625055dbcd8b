"""Soak: ``python -m tests.soak --minutes 60 --on local,nfs,slurm``.

Prints a report for each place; the exit code is 1 if there was an anomaly.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.soak.report import judged
from tests.soak.site import END, Site, SlurmSite
from tests.testbed import nfs, slurm

PLACES = ("local", "nfs", "slurm")
MOUNTS = ("V4A", "V4B", "V3A", "V3B")


def soak(site: Site, seconds: float) -> bool:
    """Run it, and print what became of it; True if all is well."""
    began = time.monotonic()
    site.run(seconds)
    lines, bad = judged(site.paths[0], str(site.folder / "journal"))
    growth, too_much = site.watch.grown()
    anomalies = [*site.anomalies, *bad, *too_much]
    kills = ", ".join(f"{what} {count}" for what, count in site.struck.items())
    tasks = ", ".join(f"{what} {count}" for what, count in site.tasks.items())
    directories = ", ".join(f"{name} {count}" for name, count in site.watch.largest.items())
    print(f"soak on {site.name}: {time.monotonic() - began:.0f} s")
    print(f"  struck: {kills}")
    print(
        f"  asked for: {sum(site.tasks.values())} ({tasks}); errors of the site told: {site.told}"
    )
    for line in (*lines, f"names in a directory, at most: {directories}", *growth):
        print(f"  {line}")
    lost = sum("lost: " in one for one in anomalies)
    twice = sum("published twice" in one for one in anomalies)
    print(f"  anomalies: {len(anomalies)} (lost {lost}, published twice {twice})", flush=True)
    for one in anomalies:
        print(f"    {one}", flush=True)
    for one in site.said if anomalies else ():
        print(f"    > {one}", flush=True)
    return not anomalies


def local(seconds: float, seed: int) -> bool:
    with Folder() as folder:
        return soak(Site(folder, [folder / "spool"], seed), seconds)


def on_nfs(seconds: float, seed: int) -> bool:
    """Inside the kernel that has NFS; its report is printed here."""
    try:
        script = Path(__file__).with_name("in_nfs.py")
        arguments = (str(seconds), str(seed))
        print(nfs.run_in_nfs(script, *arguments, timeout=seconds + 2 * END + 100), end="")
    except nfs.UmlError as error:
        print(f"soak on nfs: {error}")
        return False
    return True


def on_slurm(seconds: float, seed: int) -> bool:
    with Folder() as folder, slurm.Cluster() as cluster:
        folder.chmod(0o755)
        return soak(SlurmSite(cluster, folder, [folder / "spool"], seed), seconds)


class Folder:
    """A directory of one soak; it stays where something went wrong."""

    def __enter__(self) -> Path:
        self.path = Path(tempfile.mkdtemp(prefix="fsbroker-soak-"))
        return self.path

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            shutil.rmtree(self.path, ignore_errors=True)
        else:
            print(f"left for you to look at: {self.path}", file=sys.stderr)


RUNS = {"local": local, "nfs": on_nfs, "slurm": on_slurm}
MISSING = {"local": lambda: None, "nfs": nfs.missing, "slurm": slurm.missing}


def main() -> int:
    parser = argparse.ArgumentParser(prog="./run soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all places together")
    parser.add_argument("--on", default=",".join(PLACES), help="places, with commas between")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args()
    places = options.on.split(",")
    if unknown := set(places) - set(PLACES):
        parser.error(f"unknown: {', '.join(unknown)}; places: {', '.join(PLACES)}")
    print(f"seed {options.seed}, on {os.uname().nodename}", flush=True)
    well = True
    for place in places:
        if reason := MISSING[place]():
            print(f"soak on {place}: not here: {reason}")
            well = False
            continue
        well &= RUNS[place](60 * options.minutes / len(places), options.seed)
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
