"""Prompt templates: lm-eval's own prompts to the character, solved questions before, what calibrates."""

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from sentencepiece import SentencePieceProcessor

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.store.fetch import fetch
from meditron.tasks.file_rows import read_source_rows
from meditron.tasks.prompt_template import PROMPT_TEMPLATES, SECTIONS, PromptTemplate, find_prompt_template
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.text.tokenizer import load_tokenizer

QUESTION = Question(
    id="1",
    text="Which one?",
    options=("This.", "That", "none of them"),
    gold=1,
    context="Read  this.",
    group="anatomy",
)
LM_EVAL = {
    "medqa/preprocess_medqa.py": "06adc6ef5bda3259fe547355e6b064ca57c674b502fac749d0a0ccc8fee91787",
    "pubmedqa/preprocess_pubmedqa.py": "43528eee61666d94ae9ac3d58bcd3a0c38182a8898f996f536be9de1d3655740",
    "medmcqa/utils_medmcqa.py": "b9cbe33d51b95624b9317cab8ffb917b32c178aaa100fd9ce4aac0a9c467479b",
    "mmlu/default/_default_template_yaml": "a0997593bf94f52cc87eb1f9b621f52613a6c60f1fb48775b0926104fd385122",
    "mmlu/default/mmlu_college_biology.yaml": (
        "a102e5ddd619591a8a7edf1830bd78c9ae56f083908a31f5b62ba0d7ab593695"
    ),
}


def lm_eval_file(member: str) -> Path:
    """A file of lm-eval's tasks, from its wheel."""
    return fetch(f"pypi:lm-eval==0.4.13#lm_eval/tasks/{member}@sha256:{LM_EVAL[member]}")


@pytest.fixture(scope="module")
def lm_eval() -> Callable[[str, str], Any]:
    """A function of one of lm-eval's tasks, from its wheel: these files import nothing."""

    def function(task: str, name: str) -> Any:
        path = lm_eval_file(next(member for member in LM_EVAL if member.startswith(f"{task}/")))
        spec = importlib.util.spec_from_file_location(f"lm_eval_{task}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return getattr(module, name)

    return function


@pytest.mark.shared
@pytest.mark.network
def test_medqa_is_lm_evals(shared: Path, lm_eval: Callable[[str, str], Any]) -> None:
    file = shared / "data/medqa-usmle/test_4options.first1000.jsonl.gz"
    task = open_task(str(file), template="lm-eval-medqa")
    doc_to_text, doc_to_target = lm_eval("medqa", "doc_to_text"), lm_eval("medqa", "doc_to_target")
    reference = {}
    for row in read_source_rows(file):
        options = row.fields["options"]
        doc = {f"ending{n}": options[letter] for n, letter in enumerate("ABCD")}
        doc |= {"sent1": row.fields["question"], "label": "ABCD".index(row.fields["answer_idx"])}
        reference[row.id] = (doc_to_text(doc), doc_to_target(doc))
    assert len(reference) == 1000
    for question in task.rows("test"):
        laid_out = task.template.render(question)
        assert (laid_out.prompt, question.gold) == reference[question.id]
        assert laid_out.continuations == (" A", " B", " C", " D")


@pytest.mark.shared
@pytest.mark.network
def test_pubmedqa_is_lm_evals(shared: Path, lm_eval: Callable[[str, str], Any]) -> None:
    file = shared / "data/pubmedqa/ori_pqal.less100.json.gz"
    task = open_task(str(file), template="lm-eval-pubmedqa")
    doc_to_text = lm_eval("pubmedqa", "doc_to_text")
    reference = {
        row.id: (doc_to_text(row.fields), row.fields["final_decision"]) for row in read_source_rows(file)
    }
    for question in task.rows("test") + task.rows("train"):
        laid_out = task.template.render(question)
        assert laid_out.continuations == (" yes", " no", " maybe")
        gold = laid_out.continuations[question.gold]
        assert (laid_out.prompt, gold.removeprefix(" ")) == reference[question.id]


@pytest.mark.shared
@pytest.mark.network
def test_medmcqa_is_lm_evals(shared: Path, lm_eval: Callable[[str, str], Any]) -> None:
    file = shared / "data/medmcqa/dev.first3683.json.gz"
    task = open_task(str(file), template="lm-eval-medmcqa")
    doc_to_text = lm_eval("medmcqa", "doc_to_text")
    reference = {row.fields["id"]: doc_to_text(row.fields) for row in read_source_rows(file)}
    questions = task.rows("test")
    assert len(questions) > 3600
    for question in questions:
        assert task.template.render(question).prompt == reference[question.id]


@pytest.mark.shared
@pytest.mark.network
def test_mmlu_is_lm_evals(shared: Path) -> None:
    """lm-eval renders its YAML with jinja2; the description comes before the examples, without a blank."""
    task = open_task(str(shared / "data/mmlu/test/college_biology_test.csv"), template="lm-eval-mmlu")
    text = yaml.safe_load(lm_eval_file("mmlu/default/_default_template_yaml").read_text())["doc_to_text"]
    subject = yaml.safe_load(lm_eval_file("mmlu/default/mmlu_college_biology.yaml").read_text())
    for question in task.rows("test"):
        doc = {"question": question.text, "choices": question.options}
        question = replace(question, group=subject["dataset_name"])
        prompt = subject["description"] + jinja2.Template(text).render(doc)
        assert task.template.render(question).prompt == prompt


@pytest.mark.parametrize(
    ("name", "prompt", "continuations"),
    [
        (
            "letters",
            "Read  this.\n\nWhich one?\nA. This.\nB. That\nC. none of them\nAnswer:",
            (" A", " B", " C"),
        ),
        ("texts", "Read  this.\n\nWhich one?\nAnswer:", (" This.", " That", " none of them")),
    ],
)
def test_rendered_prompts(name: str, prompt: str, continuations: tuple[str, ...]) -> None:
    laid_out = PROMPT_TEMPLATES[name].render(QUESTION)
    assert (laid_out.prompt, laid_out.continuations, laid_out.unconditional_prompt) == (
        prompt,
        continuations,
        "Answer:",
    )
    bare = PROMPT_TEMPLATES[name].render(replace(QUESTION, context=""))
    assert bare.prompt == prompt.removeprefix("Read  this.\n\n")


def fitting(name: str) -> Question:
    return replace(QUESTION, options=PROMPT_TEMPLATES[name].fixed_options or QUESTION.options)


@pytest.mark.parametrize("name", PROMPT_TEMPLATES)
def test_examples_come_before_the_question(name: str) -> None:
    template, question = PROMPT_TEMPLATES[name], fitting(name)
    shots = [replace(question, id=f"{n}", text=f"Shot {n}?", gold=n) for n in range(2)]
    alone, after = template.render(question), template.render(question, shots)
    introduction = template.introduction.format(subject="anatomy")
    solved = [template.render(shot) for shot in shots]
    expected = [
        item.prompt.removeprefix(introduction) + item.continuations[n] for n, item in enumerate(solved)
    ]
    before = introduction + "\n\n".join([*expected, ""])
    assert after.prompt == before + alone.prompt.removeprefix(introduction)
    assert after.unconditional_prompt == before + alone.unconditional_prompt.removeprefix(introduction)
    assert after.continuations == alone.continuations
    assert question.text in alone.prompt
    assert question.text not in alone.unconditional_prompt


@pytest.mark.parametrize("name", PROMPT_TEMPLATES)
def test_a_prompt_ends_without_a_blank_and_a_continuation_begins_with_one(name: str) -> None:
    laid_out = PROMPT_TEMPLATES[name].render(fitting(name))
    for text in (laid_out.prompt, laid_out.unconditional_prompt):
        assert text == text.rstrip()
    assert all(text.startswith(" ") and text[1] != " " for text in laid_out.continuations)


@pytest.mark.parametrize("name", ["sections", "yes-no-maybe", "lm-eval-pubmedqa"])
def test_questions_with_other_options_than_the_templates_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"question 1 has other options than the template '{name}'"):
        PROMPT_TEMPLATES[name].render(QUESTION)
    with pytest.raises(UsageError, match=f"template '{name}'"):
        PROMPT_TEMPLATES[name].render(fitting(name), [QUESTION])


def test_an_unknown_template_is_an_error() -> None:
    assert find_prompt_template("texts") is PROMPT_TEMPLATES["texts"]
    with pytest.raises(UsageError, match="no template 'lm-eval-arc'"):
        find_prompt_template("lm-eval-arc")
    with pytest.raises(SourceError, match=r"mine\.toml: no such prompt file"):
        find_prompt_template("mine.toml")


def test_a_prompt_file_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('version = 2\nquestion = "{closed_question} ({subject})"\ncue = "A:"\nanswer = "text"\n')
    template = find_prompt_template(str(file))
    assert (template.id, template.sha256) == ("mine/2", hashlib.sha256(file.read_bytes()).hexdigest())
    question = replace(QUESTION, text="Braces {x}", options=("{a}", "b"))
    assert template.render(question).prompt == "Braces {x}? (anatomy)\nA:"
    assert template.render(question).continuations == (" {a}", " b")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("version = ", "not a prompt file: Invalid value"),
        ('version = 1\nquestion = "{text"\ncue = ""\nanswer = "text"', "(question).*expected '}'"),
        ('version = 1\nquestion = "{stem}"\ncue = ""\nanswer = "text"', "no placeholder {stem}"),
        ('version = 1\nquestion = "{question.id}"\ncue = ""\nanswer = "text"', "no placeholder"),
        ('version = 1\nquestion = "q"\ncue = ""\nanswer = "number"', "(answer).*'letter' or 'text'"),
        ('version = 1\nqestion = "q"\ncue = ""\nanswer = "text"', "(question).*required"),
    ],
)
def test_a_damaged_prompt_file_is_an_error(content: str, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(content)
    with pytest.raises(InputError, match=problem):
        find_prompt_template(str(file))


FIELDS = {"version": "1", "question": '"{question}"', "cue": '"A:"', "answer": '"text"'}


def own_template(folder: Path, **fields: str) -> PromptTemplate:
    file = folder / "mine.toml"
    values = FIELDS | {name: f'"{text}"' for name, text in fields.items()}
    file.write_text("".join(f"{name} = {value}\n" for name, value in values.items()))
    return find_prompt_template(str(file))


@pytest.mark.parametrize(
    ("field", "text", "placeholder"),
    [
        ("introduction", "{options}", "{options}"),
        ("introduction", "{question}", "{question}"),
        ("context", "{options}", "{options}"),
        ("question", "{letter}", "{letter}"),
        ("question", "{question!r}", "{question!r}"),
        ("question", "{question:>9}", "{question:>9}"),
        ("option", "{question}", "{question}"),
        ("solution", "{question}", "{question}"),
        ("cue", "Answer {x}:", "{x}"),
        ("cue", "Answer {options}:", "{options}"),
    ],
)
def test_a_placeholder_of_another_field_is_an_error(
    field: str, text: str, placeholder: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as error:
        own_template(tmp_path, **{field: text})
    assert f"mine.toml ({field})" in str(error.value)
    assert f"no placeholder {placeholder};" in str(error.value)


def test_every_placeholder_that_is_accepted_is_rendered(tmp_path: Path) -> None:
    question = replace(QUESTION, text=" Why ", explanation="So.")
    template = own_template(
        tmp_path,
        introduction="{subject}|",
        context="{context},{question},{stripped_question},{closed_question},{subject}|",
        question="{context}{question},{stripped_question},{closed_question},{subject}|{options}|{answers}",
        option="{letter}:{text}",
        cue="{{{subject}}}:",
        solution="{explanation} {answer}",
    )
    body = (
        "Read  this., Why ,Why, Why ?,anatomy| Why ,Why, Why ?,anatomy|A:This.\nB:That\nC:none of them"
        "|This., That, none of them\n{anatomy}:"
    )
    rendered = template.render(question, [question])
    assert rendered.prompt == f"anatomy|{body} So. That\n\n{body}"
    assert rendered.unconditional_prompt == f"anatomy|{body} So. That\n\n{{anatomy}}:"


def test_a_template_that_names_the_subject_needs_one(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="question 1 has no subject, which the template"):
        PROMPT_TEMPLATES["lm-eval-mmlu"].render(replace(QUESTION, group=None))
    with pytest.raises(UsageError, match="question 1 has no subject, which the template 'mine' names"):
        own_template(tmp_path, cue="About {subject}:").render(replace(QUESTION, group=None))


def test_published_prompts() -> None:
    """The few-shot form of the original's code (`format_mcq`, `add_few_shot`)."""
    template = PROMPT_TEMPLATES["as-published-medmcqa"]
    shot = replace(QUESTION, text="Aspirin inhibits", options=("COX", "ACE"), gold=0)
    assert template.render(QUESTION, [shot]).prompt == (
        template.introduction
        + "Question: Aspirin inhibits?\n\nOptions:\nA. COX\nB. ACE\nThe answer is: A\n\n"
        "Question: Which one?\n\nOptions:\nA. This.\nB. That\nC. none of them\nThe answer is:"
    )


@pytest.mark.shared
def test_sections_are_one_token_each(shared: Path, smollm2_gguf: Path) -> None:
    smollm2 = load_tokenizer(smollm2_gguf)
    llama2 = SentencePieceProcessor(model_file=str(shared / "data/llama-tiny/llama2-tokenizer.model"))
    laid_out = PROMPT_TEMPLATES["sections"].render(replace(QUESTION, options=SECTIONS))
    for encode in (smollm2.encode, llama2.encode):
        before = encode(laid_out.prompt)
        both = [encode(laid_out.prompt + continuation) for continuation in laid_out.continuations]
        assert all(ids[:-1] == before for ids in both)
        assert len({ids[-1] for ids in both}) == len(SECTIONS)
