"""Kills a suite at random moments, lets it finish, and compares its records with those of an undisturbed run.

    python tests/kill_suite.py seg --reference run/results --out run/killed --kills 10 --longest 120

Exits with 1 where a record differs in anything but times, memory and the commit, or where there is nothing to compare.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from redfree.bench.run import jobs_of
from redfree.bench.suite import load_suite, plan
from redfree.records.store import counts_path

VOLATILE = {
    *("created_at", "seconds", "scoring_seconds", "fit_seconds", "git_commit", "git_dirty"),
    *("peak_rss_bytes", "peak_allocated_bytes", "peak_reserved_bytes"),
}


def without_volatile(node):
    """A record without what two runs of one cell may differ in."""
    if isinstance(node, dict):
        return {key: without_volatile(value) for key, value in node.items() if key not in VOLATILE}
    return [without_volatile(item) for item in node] if isinstance(node, list) else node


def files_of(suite, only, results):
    """The records of the cells of a suite whose title contains a text, and their raw counts, below the results."""
    jobs = jobs_of([cell for cell in plan(load_suite(suite)) if only in cell.title], results)
    return sorted(path.relative_to(results) for job in jobs for path in (job.path, counts_path(job.path)))


def differences(names, reference, other):
    """Of some files, those that are missing on one side or differ."""
    found = []
    for name in names:
        first, second = reference / name, other / name
        if not (first.exists() and second.exists()):
            found.append(f"{name}: not in {other if first.exists() else reference}")
        elif name.suffix == ".json":
            if without_volatile(json.loads(first.read_text())) != without_volatile(json.loads(second.read_text())):
                found.append(f"{name}: differs")
        elif first.read_bytes() != second.read_bytes():
            found.append(f"{name}: differs")
    return found


def run_and_kill(command, seconds):
    """Starts the command and kills it after some seconds, unless it ended; returns its exit code or None."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return None


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("suite")
    parser.add_argument("--reference", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--longest", type=float, default=120.0, help="seconds, at most, before a kill")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only cells whose model/dataset/method/seed contains it")
    parser.add_argument("--parallel", type=int, default=2)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    results, cache = options.out / "results", options.out / "cache"
    command = ["redfree", "run", options.suite, "--results", str(results), "--cache", str(cache)]
    command += ["--parallel", str(options.parallel)]
    command += ["--only", options.only] if options.only else []
    rng, start = random.Random(options.seed), time.perf_counter()
    for kill in range(options.kills):
        seconds = rng.uniform(0, options.longest)
        code = run_and_kill(command, seconds)
        records = len(list(results.rglob("*.json")))
        print(f"kill {kill + 1}: after {seconds:.1f} s, {records} records, exit {code}", flush=True)
    code = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
    litter = [str(p) for p in options.out.rglob("*.part")]
    names = files_of(options.suite, options.only, results)
    found = differences(names, options.reference, results)
    print(f"finished with {code} after {time.perf_counter() - start:.0f} s; {len(names)} files compared")
    print("\n".join([*found, *(f"litter: {p}" for p in litter)]) or "all equal but for times and memory")
    sys.exit(1 if found or litter or code or not names else 0)


if __name__ == "__main__":
    main()
