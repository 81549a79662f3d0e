"""int8 files of students: rounded after training against trained with ``quantize:``.

    python train.py streets/quantized
    python benchmarks/quantized.py runs/streets/quantized

For every run of the recipe (the first seed) the student is scored in PyTorch and as an int8 ONNX
file, calibrated on 64 training images. A run without ``quantize:`` is rounded after training. The
size of weights is that of `quantize.bits` and the scales (a float network: 4 bytes each), the
size of the file is on disk, where weights of fewer than 8 bits take a byte as well.
"""

import argparse
import tempfile
from pathlib import Path

import segkd
from segkd.config.load import stored_evaluation
from segkd.engine.setup import open_dataset
from segkd.evaluation.table import TextTable
from segkd.export import to_int8, to_onnx
from segkd.models.build import network_from_file
from segkd.models.quantized import stored_bytes

HEADER = ["run", "weights", "mIoU %", "mIoU % of the int8 file", "weights MB", "int8 file MB"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path, help="folder of a recipe's runs")
    parser.add_argument("--runs", nargs="*", help="names of runs; default: all that have ended")
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
        rows.append(row(name, summary.parent, given.images, given.limit))
        print(rows[-1], flush=True)
    print(TextTable(HEADER, rows).markdown())


def row(name: str, run: Path, images: int, limit: int | None) -> list[str]:
    """The row of a run.

    Args:
        name: its name.
        run: its folder.
        images: number of calibration images.
        limit: number of scored images; None: all.
    """
    network, payload = network_from_file(run)
    facts = network.info.quantization
    dataset = open_dataset(stored_evaluation(payload, []), "train")
    count = min(images, len(dataset))
    chosen = [dataset.read(number * len(dataset) // count).image for number in range(count)]
    overrides = [f"eval.limit={limit}"] if limit else []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "student.onnx"
        to_onnx(network, path, size=network.info.crop)
        quantized = to_int8(path, Path(folder) / "student.int8.onnx", chosen)
        scores = [segkd.evaluate(one, overrides=overrides).score for one in (run, quantized.path)]
        size = quantized.path.stat().st_size
    return [
        name,
        str(facts) if facts else "float",
        *(f"{100 * score:.2f}" for score in scores),
        *(f"{number / 1e6:.2f}" for number in (stored_bytes(network, facts), size)),
    ]


if __name__ == "__main__":
    main()
