"""main.py with the network `tiny` and this file as its config, for child processes.

python -m tests.tiny_main --config=tests/tiny_main.py:DATA_DIR --workdir=DIRECTORY
"""

import os
import subprocess
import sys

from tests import tiny


def get_config(data_dir):
    """Return a training of 48 steps on pictures of 96 pixels, checkpoints every 24."""
    config = tiny.config(data_dir, epochs=12.0, save_every_epochs=6.0)
    config.data.image_size = 96
    # Sums in another order differ in the last bit; a high rate blows that up.
    config.optimizer.learning_rate = 0.005
    return config


def start(data_dir, directory, *flags, devices=4):
    """Start this file as a child process with so many CPU devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
    }
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.tiny_main",
            f"--config=tests/tiny_main.py:{data_dir}",
            f"--workdir={directory}",
            *flags,
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


if __name__ == "__main__":
    from absl import app, logging

    import main
    from anchornet_jax import models

    models.MODELS["tiny"] = (tiny.Tiny, {})
    logging.set_verbosity(logging.INFO)
    app.run(main.main)
