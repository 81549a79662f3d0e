"""int8 files of students: rounded after training against trained with ``quantize:``.

    python train.py streets/quantized
    python benchmarks/quantized.py runs/streets/quantized

For every run of the recipe (the first seed) the student is scored in PyTorch and as an int8 ONNX
file, calibrated on 64 training images. A run without ``quantize:`` is rounded after training: to
int8, and in a row of its own its weights to 4 bits. The size of weights is that of `quantize.bits`
and the scales (a float network: 4 bytes each), the size of the file is on disk, where weights of
fewer than 8 bits take a byte as well.
"""

import argparse
import tempfile
from pathlib import Path

import segkd
from segkd.config.load import stored_evaluation
from segkd.config.quantize import QuantizeConfig
from segkd.engine.setup import open_dataset
from segkd.evaluation.evaluator import evaluate_network
from segkd.evaluation.table import TextTable
from segkd.export import to_int8, to_onnx
from segkd.models.build import network_from_file
from segkd.models.quantized import facts_of, quantize_network, stored_bytes
from segkd.runtime import Runtime

HEADER = ["run", "weights", "mIoU %", "mIoU % of the int8 file", "weights MB", "int8 file MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="folder of a recipe's runs")
    parser.add_argument("--runs", nargs="*", help="names of runs; default: all that have ended")
    parser.add_argument("--bits", type=int, default=4, help="to which float students are rounded")
    parser.add_argument("--images", type=int, default=64, help="for calibration")
    parser.add_argument("--limit", type=int, help="score on the first images only")
    given = parser.parse_args()
    rows = []
    for summary in sorted(
        given.recipe.glob("*/*/summary.json"), key=lambda path: path.stat().st_mtime
    ):
        name = summary.parent.parent.name
        if (given.runs and name not in given.runs) or name in [row[0] for row in rows]:
            continue
        found = run_rows(name, summary.parent, given)
        print(*found, sep="\n", flush=True)
        rows += found
    print(TextTable(HEADER, rows).markdown())


def run_rows(name: str, run: Path, given: argparse.Namespace) -> list[list[str]]:
    """The rows of a run: its student and, if that is a float one, its rounded weights.

    Args:
        name: of the run.
        run: its folder.
        given: the command line.
    """
    network, payload = network_from_file(run)
    facts = network.info.quantization
    overrides = [f"eval.limit={given.limit}"] if given.limit else []
    config = stored_evaluation(payload, overrides)
    data = open_dataset(config, "train")
    count = min(given.images, len(data))
    chosen = [data.read(number * len(data) // count).image for number in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        to_onnx(network, path, size=network.info.crop)
        file = to_int8(path, Path(folder) / "student.int8.onnx", chosen).path
        scores = [segkd.evaluate(one, overrides=overrides).score for one in (run, file)]
        sizes = stored_bytes(network, facts), file.stat().st_size
    rows = [[name, str(facts or "float"), *map(percent, scores), *map(megabytes, sizes)]]
    if facts is None:
        quantize_network(network, QuantizeConfig(bits=given.bits))
        facts = facts_of(network)
        score = evaluate_network(
            network, open_dataset(config, "val"), config.eval, Runtime.single()
        ).score
        size = megabytes(stored_bytes(network, facts))
        rows.append([f"{name}, rounded", str(facts), percent(score), "–", size, "–"])
    return rows


def percent(score: float) -> str:
    return f"{100 * score:.2f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.2f}"


if __name__ == "__main__":
    main()
