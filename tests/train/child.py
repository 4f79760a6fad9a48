"""A stage in a child process. Imports no more than the stages do, so that a child starts fast."""

import multiprocessing
import resource
import sys

from meditron.core.errors import MeditronError
from meditron.train import finetune, pretrain

# A server that has imported all that is slow forks each child at once.
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(
    [
        "meditron.train.pretrain",
        "meditron.train.finetune",
        "matplotlib.figure",
        "matplotlib.backends.backend_svg",
    ]
)


def start(inputs, out, config, stage="pretrain", *, file_size=None):
    """The stage in a process of its own, to be killed, interrupted or short of disk."""
    child = _server.Process(target=_work, args=(inputs, out, config, stage, file_size))
    child.start()
    return child


def _work(inputs, out, config, stage, file_size):
    if file_size is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    try:
        {"pretrain": pretrain, "finetune": finetune}[stage].run(config, inputs, out)
    except KeyboardInterrupt:
        sys.exit(130)
    except MeditronError as error:
        (out / "error.txt").write_text(f"{type(error).__name__}: {error.message}", encoding="utf-8")
        sys.exit(1)
