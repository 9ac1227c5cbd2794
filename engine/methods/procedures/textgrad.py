"""TextGrad: criticism in words as the gradient of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from engine import figures
from engine.fields import Count, LanguagePart, Lines, Whole
from engine.kit.text_graph import TextualGradientDescent, Variable, ask, mean, total
from engine.kit.texts import Texts, TextTask, pack, questions_of
from engine.parts import Batch, Figure, LanguageModel, Procedure, Task, procedure

if TYPE_CHECKING:
    from engine.training.run import Run

PROMPT = "prompt"
SHOWN = 20  # of the newest criticisms, and of the answers, in a figure
FIRST = "first/"  # the name under which an answer's first version is kept


@procedure(
    id="textgrad",
    name="TextGrad (textual gradients)",
    paper='TextGrad: Automatic "Differentiation" via Text',
    arxiv="2406.07496",
    recommends={"training": {"batch_size": 3}, "budget": {"epochs": 3}},
    example={
        "task": {"use": "sentence-rules", "samples": 24},
        "procedure": {"engine": {"use": "rule-engine"}, "gradient_memory": 1, "momentum_window": 1},
        "training": {"batch_size": 3},
        "budget": {"steps": 4},
    },
)
class Textgrad(Procedure):
    """Improves a text by criticism in words. A language model judges what came of the text; another call says what
    about each text on the way there should change; a third one rewrites the text by what was said. The text is the
    system prompt of a task, or each of its answers.

        y = LLM(prompt, x);   loss = LLM(judge, y)
        dloss/dy = critic(judge, y, loss);   dloss/dprompt = critic(prompt, x, y, dloss/dy)
        prompt <- rewrite(prompt, all of its criticism)

    Helps: where a model can tell what is wrong with an answer better than it gets it right, and where no gradient is.
    Hurts: weak models criticize at random; a rewritten prompt may be worse, which only a validation split notices.
    Cost: three calls a sample and one a step, and with `revert_on_val_drop` a call for each validation sample a step.

    Choices: the criticisms of a batch stand one below the other; with the reduction "mean" one more call merges them. A
    rewritten prompt is taken back where the validation score falls below that of the one before. Momentum shows the
    rewriting call the last values, and the memory the last criticisms. A reply without the tags that it was asked for
    leaves the text as it is, with a message. Answers of validation and test are improved from the model's own first
    answer whenever they are measured.

    Args:
        engine: The language model that answers and rewrites.
        backward_engine: The one that judges and criticizes; none takes `engine`.
        optimize: Whether the system prompt is improved, or every answer by itself.
        start: The prompt to begin with; empty takes the task's.
        iterations: How often an answer is improved before validation and test measure it.
        constraints: Sentences that every rewritten text must satisfy.
        momentum_window: So many earlier values are shown to the rewriting call.
        gradient_memory: So many earlier criticisms are shown to it.
        revert_on_val_drop: Whether a prompt that makes the validation score worse is taken back.
        reduction: How the criticisms of a batch are put together.
        feedback: Whether the criticism reaches the rewriting call; without it, it rewrites blindly.
    """

    uses = ()
    inputs = ("text",)
    outputs = ("text",)
    brings_objective = True
    offers = ()
    makes = ()
    divisible = False

    def __init__(
        self,
        engine: LanguagePart,
        backward_engine: LanguagePart | None = None,
        optimize: Literal["prompt", "answers"] = "prompt",
        start: Lines = "",
        iterations: Count = 3,
        constraints: list[str] = [],  # noqa: B006 - the default is shown in the form; it is never changed
        momentum_window: Whole = 0,
        gradient_memory: Whole = 0,
        revert_on_val_drop: bool = True,
        reduction: Literal["sum", "mean"] = "sum",
        feedback: bool = True,
    ):
        self.engine, self.backward_engine = engine, backward_engine
        self.optimize, self.start, self.iterations, self.constraints = optimize, start, iterations, constraints
        self.momentum_window, self.gradient_memory = momentum_window, gradient_memory
        self.revert_on_val_drop, self.reduction, self.feedback = revert_on_val_drop, reduction, feedback
        self.score: float | None = None  # of the prompt as it is, on the validation split
        self.values: dict[str, list[str]] = {}
        self.criticisms: dict[str, list[str]] = {}
        self.told: list[list[Any]] = []  # the newest criticisms: step, of what, what was said, what came of it
        self.reverted = 0
        self.untagged = 0

    @classmethod
    def requires(cls, settings: Mapping[str, Any], task: Task, anatomy: Any, recipe: Mapping[str, Any]) -> str | None:
        if not isinstance(task, TextTask):
            return "the task does not say in words what an answer is and how it is judged."
        if settings["optimize"] == PROMPT and settings["revert_on_val_drop"] and not task.size("val"):
            return (
                "it takes worse prompts back by a validation split, which is missing; set revert_on_val_drop = false."
            )
        return None

    @classmethod
    def calls(cls, settings: Mapping[str, Any], task: Task, recipe: Mapping[str, Any], steps: int) -> int:
        size, measured = recipe["training"]["batch_size"], task.size("val") + task.size("test")
        if settings["optimize"] == PROMPT:
            return steps * (3 * size + 1 + settings["revert_on_val_drop"] * task.size("val")) + measured
        return 3 * size * steps + measured * (1 + 3 * settings["iterations"])

    def make_model(self, task: Task) -> nn.Module:
        start = self.start or getattr(task, "start", "")
        return Texts({PROMPT: start, FIRST + PROMPT: start})

    @property
    def critic(self) -> LanguageModel:
        """The language model that judges and criticizes."""
        found: LanguageModel = self.backward_engine or self.engine
        return found

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, run: Run, batch: Batch) -> None:
        (self._prompt_step if self.optimize == PROMPT else self._answers_step)(run, batch)

    def _prompt_step(self, run: Run, batch: Batch) -> None:
        task, texts = run.task, run.model
        assert isinstance(task, TextTask) and isinstance(texts, Texts)
        prompt = Variable(texts[PROMPT], task.prompt_role)
        asked = [Variable(text, "the question", requires_grad=False) for text in questions_of(batch)]
        answers, tokens = ask(self.engine, [(prompt, x) for x in asked], task.role, self._occasion(run))
        run.count("tokens", tokens)
        self._tell(run, batch, [answer.value for answer in answers])
        if self.score is None and self.revert_on_val_drop:
            self.score = self._validation(run)
        (change,) = self._descend(run, batch, [prompt], [PROMPT], answers)
        texts[PROMPT] = prompt.value
        if self.revert_on_val_drop and prompt.value != change.before:
            found = self._validation(run)
            if self.score is not None and found < self.score:
                texts[PROMPT] = change.before
                self.told[-1][-1] = f"taken back: {found:.3g} is below {self.score:.3g}"
                self.reverted += 1
            else:
                self.score = found

    def _answers_step(self, run: Run, batch: Batch) -> None:
        task, texts = run.task, run.model
        assert isinstance(task, TextTask) and isinstance(texts, Texts)
        names = [str(index) for index in batch.index.tolist()]
        new = [i for i, name in enumerate(names) if name not in texts.texts]
        if new:
            asked = questions_of(batch)
            for i, text in zip(new, self._first(run, [asked[i] for i in new]), strict=True):
                texts[names[i]] = texts[FIRST + names[i]] = text
        answers = [Variable(texts[name], task.role) for name in names]
        self._tell(run, batch, [answer.value for answer in answers])
        self._descend(run, batch, answers, names, answers)
        for name, answer in zip(names, answers, strict=True):
            texts[name] = answer.value

    def _descend(
        self, run: Run, batch: Batch, variables: Sequence[Variable], names: Sequence[str], answers: Sequence[Variable]
    ) -> list[Any]:
        """Judges the answers, lets the criticism go back, and rewrites the variables."""
        if self.feedback:
            run.count("tokens", self._criticize(run, batch, answers))
        optimizer = TextualGradientDescent(
            self.engine,
            variables,
            self.constraints,
            momentum=self.momentum_window,
            memory=self.gradient_memory,
            values=[self.values.get(name, []) for name in names],
            criticisms=[self.criticisms.get(name, []) for name in names],
        )
        changes = optimizer.step(self._occasion(run))
        run.count("tokens", optimizer.tokens)
        for name, variable, change, values, criticisms in zip(
            names, variables, changes, optimizer.values, optimizer.criticisms, strict=True
        ):
            self.values[name], self.criticisms[name] = values, criticisms
            came = "no new text" if change.error else "rewritten" if change.after != change.before else "as it was"
            self.told.append([run.step, _called(name), variable.feedback, came])
            if change.error:
                self.untagged += 1
                run.note(change.error, "error")
        self.told = self.told[-SHOWN:]
        return changes

    def _criticize(self, run: Run, batch: Batch, answers: Sequence[Variable]) -> int:
        """Has the critic judge the answers and pass its judgement back; returns the tokens."""
        task = run.task
        assert isinstance(task, TextTask)
        judge = Variable(task.instruction, "the judge's instruction", requires_grad=False)
        facts = task.facts(questions_of(batch), [answer.value for answer in answers], batch)
        judged = [
            (judge, answer, Variable(fact, "what is known of it", requires_grad=False))
            for answer, fact in zip(answers, facts, strict=True)
        ]
        losses, tokens = ask(self.critic, judged, "the judgement", self._occasion(run))
        together = (mean if self.reduction == "mean" else total)(losses)
        return tokens + together.backward(self.critic, self._occasion(run))

    # -- answers ---------------------------------------------------------------------------------------------------

    def predict(self, run: Run, batch: Batch) -> Any:
        texts = run.model
        assert isinstance(texts, Texts)
        names = [str(index) for index in batch.index.tolist()]
        if self.optimize == PROMPT:
            answers = self._first(run, questions_of(batch))
        elif batch.split == "train" and all(name in texts.texts for name in names):
            answers = [texts[name] for name in names]
        else:
            answers = self._improved(run, batch)
        return pack(answers).to(batch.x.device)

    def _first(self, run: Run, questions: Sequence[str]) -> list[str]:
        """The model's own answers, by the prompt."""
        texts, task = run.model, run.task
        assert isinstance(texts, Texts) and isinstance(task, TextTask)
        prompt = Variable(texts[PROMPT], task.prompt_role, requires_grad=False)
        asked = [(prompt, Variable(text, "the question", requires_grad=False)) for text in questions]
        answers, tokens = ask(self.engine, asked, task.role, self._occasion(run))
        run.count("tokens", tokens)
        return [answer.value for answer in answers]

    def _improved(self, run: Run, batch: Batch) -> list[str]:
        """Answers that nothing is kept of, improved as often as the recipe says."""
        task = run.task
        assert isinstance(task, TextTask)
        answers = [Variable(text, task.role) for text in self._first(run, questions_of(batch))]
        optimizer = TextualGradientDescent(
            self.engine, answers, self.constraints, momentum=self.momentum_window, memory=self.gradient_memory
        )
        for iteration in range(self.iterations):
            if self.feedback:
                run.count("tokens", self._criticize(run, batch, answers))
            optimizer.step((*self._occasion(run), iteration))
            optimizer.zero_grad()
        run.count("tokens", optimizer.tokens)
        return [answer.value for answer in answers]

    # -- numbers and figures ---------------------------------------------------------------------------------------

    def _occasion(self, run: Run) -> tuple[int, int]:
        return run.seed, run.step

    def _validation(self, run: Run) -> float:
        return run.evaluate("val")[run.task.metric[0]]

    @staticmethod
    def _tell(run: Run, batch: Batch, answers: Sequence[str]) -> None:
        """The loss of the step: what the mean score of the answers lacks."""
        run.tell(1.0 - run.task.metrics(pack(answers), batch)[run.task.metric[0]].mean())

    def result(self, run: Run) -> dict[str, float]:
        return {"reverted": float(self.reverted), "replies_without_tags": float(self.untagged)}

    def found(self, run: Run) -> dict[str, Any]:
        if self.optimize != PROMPT:
            return {}
        assert isinstance(run.model, Texts)
        return {"procedure.start": run.model[PROMPT]}

    def figures(self, run: Run) -> dict[str, Figure]:
        texts = run.model
        assert isinstance(texts, Texts)
        names = [PROMPT] if self.optimize == PROMPT else [n for n in texts.texts if n.isdigit()][:SHOWN]
        columns = [("before", FIRST), ("after", "")]
        shown = [(head, "\n".join(texts[mark + name] for name in names)) for head, mark in columns]
        what = "The prompt" if self.optimize == PROMPT else "Answers"
        drawn = {"text": figures.texts(what, *shown, difference=True)}
        if self.told:
            drawn["criticism"] = figures.table("Criticism", ["step", "of", "what was said", "then"], self.told)
        return drawn


def _called(name: str) -> str:
    return "the prompt" if name == PROMPT else f"answer {name}"
