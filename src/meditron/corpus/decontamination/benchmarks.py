"""Reading of the benchmarks that the corpus is searched for."""

from collections.abc import Mapping
from pathlib import Path

from meditron.core.console import warn
from meditron.corpus.decontamination.outputs import INDEX_FILE, SEARCHED_FILE
from meditron.search.question_index import IndexedQuestion, QuestionIndex
from meditron.store.contamination import SearchedBenchmark
from meditron.store.files import write_json
from meditron.tasks.registry import open_task

__all__ = ["index_benchmarks"]


def index_benchmarks(tasks: Mapping[str, Path], work: Path) -> None:
    """Write the index of the questions of benchmarks, and the list of the benchmarks, to a folder.

    The questions are those of the test split, on which models are evaluated.

    Args:
        tasks: Task as the recipe names it → its fetched file or folder.
        work: The folder.

    Raises:
        InputError: a file is damaged, of unknown format, or has a row that is not a question; names the line.
    """
    benchmarks: list[SearchedBenchmark] = []
    questions: list[IndexedQuestion] = []
    for spec, files in tasks.items():
        task = open_task(spec, files=files)
        read = [IndexedQuestion.from_question(task.name, question) for question in task.rows("test")]
        if wordless := sum(not (question.text or question.context) for question in read):
            warn(f"{spec}: {wordless} of {len(read)} questions have no words and cannot be found")
        questions += read
        digest = task.data_sha256("test")
        benchmarks.append(SearchedBenchmark(name=task.name, data_sha256=digest, questions=len(read)))
    write_json(work / SEARCHED_FILE, [benchmark.model_dump(mode="json") for benchmark in benchmarks])
    # Written last: its existence means that both files are complete.
    QuestionIndex.build(questions).save(work / INDEX_FILE)
