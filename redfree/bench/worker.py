"""The process of one cell: `python -m redfree.bench.worker RECORD CACHE [FEATURES]`, the request on standard input."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from redfree.bench.cell import measure, write_measurement
from redfree.bench.request import CellRequest
from redfree.errors import UserError
from redfree.search.log import SearchLog


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> int:
    """Measures the requested cell and writes its raw counts, then its record."""
    request = CellRequest.model_validate_json(sys.stdin.readline())
    run_id = sys.stdin.readline().strip()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    path, cache = Path(sys.argv[1]), Path(sys.argv[2])
    log, tuners = SearchLog(cache / "scores"), cache / "tuners"
    try:
        dataset = request.open_dataset()
        features = Path(sys.argv[3]) if len(sys.argv) > 3 else None
        measurement = measure(request, dataset, None, log, feature_folder=features, tuner_folder=tuners)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if measurement.record.run_id != run_id:
        sys.stderr.write(f"the cell was planned as {run_id} and measured as {measurement.record.run_id}\n")
        return 1
    write_measurement(path, measurement)
    return 0


if __name__ == "__main__":
    sys.exit(main())
