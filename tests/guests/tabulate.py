"""Measure architectures and write the table of docs/frameworks.md: ``python -m tests.guests.tabulate [name ...]``.

Times are seconds of the processor, all cores together, as others may use them too. Each architecture is measured in a
process of its own, and its row written when it is done.
"""

import json
import subprocess
import sys
import time

from tests import ROOT

PAGE = ROOT / "docs" / "frameworks.md"
IMAGES = 8
COLUMNS = ("framework", "network", "side", "taps", "hidden", "error", "plain", "probe", "plain again", "probe again")


def rows() -> dict[str, dict[str, str]]:
    """Return the rows of the page, by the name of the architecture."""
    lines = [line.strip("| \n").split(" | ") for line in PAGE.read_text().splitlines()]
    found = [dict(zip(COLUMNS, cells, strict=True)) for cells in lines if len(cells) == len(COLUMNS)]
    return {row["network"].strip("`"): row for row in found if row["network"].startswith("`")}


def write(name: str, row: dict[str, str]) -> None:
    """Put a row in the place of the one of that name, or behind the last."""
    line = f"| {' | '.join(row[column] for column in COLUMNS)} |"
    lines = PAGE.read_text().splitlines()
    places = [k for k, known in enumerate(lines) if known.count("|") == len(COLUMNS) + 1]
    same = [k for k in places if f"| `{name}` |" in lines[k]]
    if same:
        lines[same[0]] = line
    else:
        lines.insert(places[-1] + 1, line)
    PAGE.write_text("\n".join(lines) + "\n")


def measure(name: str) -> dict[str, str]:
    """Measure one architecture in this process."""
    import jax
    import numpy as np

    import tests.guests.conftest  # noqa: F401  # before torchvision
    from stabjax import features, perturb, probe
    from tests.guests.architectures import ARCHITECTURES
    from tests.guests.test_architectures import deviation

    architecture = ARCHITECTURES[name]
    guest, side = architecture.build(), architecture.side
    x = np.random.default_rng(0).normal(size=(IMAGES, side, side, 3)).astype(np.float32)
    own, _ = guest.run(x)
    traced = features.trace(guest.network, x)
    deformation = perturb.Diffeomorphism.of_displacement(1.0, 3, (side, side))

    def plain():
        # As many rows as the probe has: clean, deformed and noisy.
        return forward(guest.network, np.concatenate([x, x, x]))

    def probed():
        return probe.stability(guest.network, x, key=jax.random.key(0), deformation=deformation, batch_size=IMAGES)

    def seconds(run):
        start = time.process_time()
        result = jax.block_until_ready(run())
        return time.process_time() - start, result

    # What all networks share is there.
    probe.stability(lambda x: x.mean((1, 2)), x, key=jax.random.key(0), deformation=deformation, batch_size=IMAGES)
    forward = jax.jit(lambda network, x: network(x))
    (first, outputs), (again, _) = seconds(plain), seconds(plain)
    (first_probe, _), (probe_again, _) = seconds(probed), seconds(probed)
    outputs = jax.tree.map(lambda value: value[:IMAGES], outputs)
    error = max(jax.tree.leaves(jax.tree.map(deviation, own, outputs)))
    times = {"plain": first - again, "probe": first_probe - probe_again}
    more = {"plain again": again, "probe again": probe_again}
    return {
        "framework": architecture.framework,
        "network": f"`{name}`",
        "side": str(side),
        "taps": str(len(traced.taps)),
        "hidden": str(len(traced.hidden)),
        "error": f"{error:.0e}",
        **{column: f"{value:.1f} s" for column, value in times.items()},
        **{column: f"{value:.2f} s" for column, value in more.items()},
    }


def main(names: list[str]) -> None:
    """Measure the architectures of these names, or all that the page names."""
    if names[:1] == ["--one"]:
        print(json.dumps(measure(names[1])))
        return
    for name in names or list(rows()):
        command = [sys.executable, "-m", "tests.guests.tabulate", "--one", name]
        printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
        write(name, json.loads(printed.splitlines()[-1]))


if __name__ == "__main__":
    main(sys.argv[1:])
