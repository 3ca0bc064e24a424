"""Every table of benchmarks/README.md for one GPU or TPU, by one command, in ten minutes.

    python benchmarks/accelerator.py
    python benchmarks/accelerator.py --quick  # tiny sizes, to see that it works

Needs jax, flax and optax alone. Runs the other benchmarks one after the other, each in a
process of its own, so that one that fails or takes too long costs only its own table:

- networks: forward, float32 and bfloat16, AnchorNet beside its floor by bytes and by
  arithmetic (networks.py);
- training: steps per second, float32 and bfloat16 (throughput.py);
- engine: ResNet-50 and DenseNet-201 at five budgets, against compute padding and shrink
  only, and ResNet-50 in batches of 64 to 1024 (early_exit.py);
- sizes: cost against image size (image_size.py);
- growth: one image at a time, inputs, batches, devices and streams (growth.py).

Compiled programs are kept in a folder for the run, so nothing is compiled twice. What is
left when the time is over is not started, and said so. The tables are printed and
written as Markdown to results/accelerator.md beside this file, all numbers as JSON to
results/accelerator.json.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from anchornet_jax.runtime import files

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results" / "accelerator.json"
ENOUGH = 20  # seconds that a table needs at least, its compilation included


def runs(quick: bool) -> list[tuple[str, str, list[str]]]:
    """Return (title, script, flags) of every run, the most telling first."""
    if quick:
        small = "--network resnet10 --size 127"
        engine = f"{small} --images 16 --batch 4 --repeats 1"
        return [
            (
                "Networks",
                "networks.py",
                "--networks anchornet --batches 2 --seconds 0.1 --size 127",
            ),
            (
                "Training",
                "throughput.py",
                "--models anchornet --batch 2 --seconds 0.1 --size 127 --dtypes float32",
            ),
            ("Early exit", "early_exit.py", engine),
            (
                "Image size",
                "image_size.py",
                "--network resnet10 --sizes 224 --repeats 1",
            ),
            (
                "Growth",
                "growth.py",
                f"{small} --images 4 --batch 2 --parts latency stream --lengths 8",
            ),
        ]
    engine = "--dtype bfloat16 --repeats 3"
    return [
        ("Networks", "networks.py", "--batches 16 256 --seconds 1"),
        (
            "Early exit, batches of 256",
            "early_exit.py",
            f"--network resnet50 --batch 256 --images 8192 {engine}",
        ),
        ("Training", "throughput.py", "--batch 128 --seconds 3"),
        (
            "Early exit, DenseNet-201",
            "early_exit.py",
            f"--network densenet201 --batch 256 --images 8192 {engine}",
        ),
        *(
            (
                f"Early exit, batches of {batch}",
                "early_exit.py",
                f"--network resnet50 --batch {batch} --images {max(2048, 8 * batch)} "
                + engine,
            )
            for batch in (64, 1024)
        ),
        (
            "Growth",
            "growth.py",
            "--dtype bfloat16 --images 2048 --batch 256 --lengths 2048 8192",
        ),
        (
            "Image size",
            "image_size.py",
            "--sizes 224 512 1024 2048 --repeats 3 --ways sequence",
        ),
    ]


def run(script: str, flags: str, folder: pathlib.Path, seconds: float):
    """Run a benchmark; return what it wrote, or why it did not."""
    output = folder / f"{time.monotonic_ns()}.json"
    command = [sys.executable, str(HERE / script), *flags.split(), f"--output={output}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return None, f"stopped after {seconds:.0f} s"
    print(done.stdout, end="", flush=True)
    if done.returncode:
        return None, f"failed, exit code {done.returncode}; see above"
    return json.loads(output.read_text()), None


def tables(found: dict) -> list[list[dict]]:
    """Return the tables of what a benchmark wrote: every list of rows in it."""
    lists = (value for value in found.values() if isinstance(value, list) and value)
    return [rows for rows in lists if isinstance(rows[0], dict)]


def markdown(rows: list[dict]) -> str:
    """Return rows as a Markdown table, without what is the same in all, or nested."""
    columns = [key for key, value in rows[0].items() if not isinstance(value, dict)]
    if len(rows) > 1:
        columns = [c for c in columns if len({str(r.get(c)) for r in rows}) > 1]
    lines = [columns, ["---"] * len(columns)]
    lines += [[_cell(row.get(column)) for column in columns] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value) -> str:
    if value is None:
        return "–"
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


def report(results: list[dict]) -> str:
    """Return the whole page as Markdown."""
    parts = []
    for result in results:
        parts.append(f"## {result['title']}\n\n`{result['command']}`")
        if result["error"]:
            parts.append(f"Not measured: {result['error']}.")
        else:
            parts += map(markdown, tables(result["found"]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Run everything, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="tiny sizes, to see that it works")
    add("--only", nargs="+", default=[], help="scripts to run, such as networks.py")
    add("--minutes", type=float, default=10, help="after which nothing is started")
    add("--output", type=pathlib.Path, default=RESULTS, help="results are written here")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for title, script, flags in runs(options.quick):
            if options.only and script not in options.only:
                continue
            left, found = end - time.monotonic(), None
            print(f"{title}: {script} {flags}", flush=True)
            error = "the time was over"
            if left > ENOUGH:
                found, error = run(script, flags, pathlib.Path(folder), left)
            command = f"python benchmarks/{script} {flags}"
            about = {"title": title, "command": command}
            results.append(about | {"found": found, "error": error})
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, {"results": results})
    page = options.output.with_suffix(".md")
    with files.whole(page) as file:
        file.write(report(results))
    print(report(results))
    print(f"wrote {options.output} and {page}")
    if failed := [result["title"] for result in results if result["error"]]:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
