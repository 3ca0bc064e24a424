"""Run a program on a config: `python main.py --config=FILE [--workdir=DIRECTORY]`.

The logic is in modules that tests and notebooks import; here are flags alone. Exit
status: 0 when finished, 1 for what cannot run or be read, 143 when SIGTERM stopped a
training, which the same command then continues.
"""

import os
import sys

from absl import app, flags, logging
from ml_collections import config_flags

# What is the user's to mend, or the machine's: said in a line, without a trace.
KNOWN = (ValueError, OSError, FloatingPointError, MemoryError)
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "What to run, see configs/. Change any key with --config.KEY=VALUE.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Directory of the run; give it again to resume the run. runs/PROGRAM by default.",
)
COORDINATOR = flags.DEFINE_string(
    "coordinator",
    "",
    "With several hosts: host:port of process 0, or `auto`. Slurm, Open MPI and most "
    "TPU pods are recognised without it.",
)
PROCESSES = flags.DEFINE_integer("num_processes", None, "How many, with host:port.")
PROCESS = flags.DEFINE_integer("process_id", None, "This one's, from 0, with it.")
flags.mark_flag_as_required("config")


def parse(argv):
    """Parse the flags; say in a line, not in a traceback, what is wrong with a config."""
    try:
        rest = flags.FLAGS(argv)
        CONFIG.value.program  # noqa: B018, read for the error of a missing file
        return rest
    except OSError as error:
        text = f"--config: {str(error).splitlines()[-1].strip()}; see configs/"
    except (SyntaxError, ImportError, UnicodeError) as error:
        text = (
            f"--config: this is no config, see configs/: {str(error).splitlines()[0]}"
        )
    except (AttributeError, KeyError) as error:
        text = str(error).strip("'").replace("\\n", ". ").replace("\\'", "'")
        text = f"no key {text}"
    except flags.Error as error:  # what `get_config` raised is quoted in it whole
        text = str(error).strip().rpartition("Error: ")[2]
    sys.exit(f"FATAL Flags parsing error: {text}\nPass --helpshort to see the flags.")


def _reason(error: Exception) -> str:
    """Say in a line what stopped a program."""
    text = str(error).strip() or type(error).__name__
    if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError):
        first = text.partition("\n")[0]
        return f"out of memory, try a smaller `config.batch_size`: {first}"
    return text


def main(argv):
    """Join the hosts, hide accelerators from TensorFlow, run the config's program."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected {argv[1:]}; values need a flag before them")
    # Imported late: `--help` and a mistyped key should not wait for TensorFlow.
    import jax
    import tensorflow as tf

    from anchornet_jax.programs import pipeline, predict
    from anchornet_jax.runtime import console, memory, parallel, preemption

    tf.config.set_visible_devices([], "GPU")
    tf.config.set_visible_devices([], "TPU")
    console.prepare()
    try:
        parallel.connect(COORDINATOR.value, PROCESSES.value, PROCESS.value)
        logging.info(
            "JAX %s on %s, process %d of %d",
            jax.__version__,
            jax.local_devices(),
            jax.process_index(),
            jax.process_count(),
        )
        if jax.default_backend() == "cpu":
            memory.keep()
        workdir = WORKDIR.value or f"runs/{CONFIG.value.program}"
        pipeline.run(CONFIG.value, workdir)
    except (*KNOWN, tf.errors.OpError) as error:
        logging.debug("", exc_info=True)
        print(f"FATAL {_reason(error)}", file=sys.stderr)
        return 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"FATAL {_reason(error)}", file=sys.stderr)
        return 1
    except preemption.Preempted as message:
        logging.warning("%s", message)
        return preemption.EXIT_STATUS
    except predict.Unreadable as message:
        logging.error("%s", message)
        return 1


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    logging.set_verbosity(logging.INFO)
    app.run(main, flags_parser=parse)
