"""A corpus and its tokens, built in a process that kills itself when it renames a certain file."""

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

CORPUS = {"shard_documents": 20, "heldout": 0.2}


def build(source: Path, base: Path, out: Path, settings: dict[str, Any]) -> None:
    """Build `out/corpus` and `out/tokens` from a file, with keys of both tables such as `workers`."""
    from meditron.corpus import tokenize
    from meditron.corpus.build import run
    from meditron.corpus.config import CorpusConfig, TokenizeConfig
    from meditron.store.manifest import Artifact

    config = CorpusConfig.model_validate({"sources": {"a": {"from": str(source)}}} | CORPUS | settings)
    # A stage writes its manifest when it is finished; here the folder `work` marks an unfinished stage.
    if not (out / "corpus/report.html").exists() or (out / "corpus/work").exists():
        run(config, {"a": Artifact("a", source, "0" * 64)}, out / "corpus")
    inputs = {"base": Artifact(str(base), base, "0"), "corpus": Artifact("corpus", out / "corpus", "0")}
    tokenize.run(TokenizeConfig.model_validate(settings), inputs, out / "tokens")


def build_and_die(source: Path, base: Path, out: Path, victim: str, after: bool) -> None:
    """Build with one worker, and kill this process before or after the file `victim` gets its name."""
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        dies = Path(target).relative_to(out).as_posix() == victim
        if dies and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        renamed = rename(self, target)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        return renamed

    Path.replace = replace  # type: ignore[method-assign]
    build(source, base, out, {})


def build_and_record(source: Path, base: Path, out: Path, log: Path) -> None:
    """Build with one worker, and write the names of all files to `log`, in the order of their renames."""
    rename = Path.replace

    def replace(self: Path, target: Path) -> Path:
        with log.open("a") as file:
            file.write(f"{Path(target).relative_to(out).as_posix()}\n")
        return rename(self, target)

    Path.replace = replace  # type: ignore[method-assign]
    build(source, base, out, {})


def in_process(target: Any, *arguments: Any) -> int | None:
    """Call a function of this module in a process of its own; return the exit code."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["meditron.corpus.build", "meditron.corpus.tokenize"])
    process = context.Process(target=target, args=arguments)
    process.start()
    process.join()
    return process.exitcode
