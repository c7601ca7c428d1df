"""What the language model is asked, in Russian.

Two calls write a query: the first chooses who asks, what kind of question and how hard, the second
writes it (Qwen3 Embedding, arXiv:2506.05176, section 3.2 and appendix A). A third call judges it.
"""

from dataclasses import dataclass

from tasks.synthesize.cache import Messages
from tasks.synthesize.drafts import Document

MAX_DOCUMENT_CHARACTERS = 6000
"""Start of a document that is shown; the rest would cost tokens and hardly change the query."""

QUESTION_TYPES = {
    "keywords": "несколько ключевых слов, как их набирают в строке поиска",
    "acquire_knowledge": "вопрос, чтобы узнать факт, причину или порядок действий",
    "summary": "просьба о кратком изложении или обзоре",
    "yes_or_no": "вопрос, на который отвечают «да» или «нет»",
    "background": "вопрос об обстоятельствах, истории или устройстве предмета",
}
DIFFICULTIES = {
    "high_school": "школьник старших классов",
    "university": "студент",
    "phd": "специалист с учёной степенью",
}
LANGUAGES = {"ru": "русский", "en": "английский", "uk": "украинский", "kk": "казахский"}
QUERY_WORDS = (5, 10, 15, 25)
"""Lengths that queries are asked for, taken in turn."""

_SYSTEM = (
    "Ты составляешь обучающие примеры для поисковой системы. "
    "Отвечай одним объектом JSON без пояснений."
)


@dataclass(frozen=True)
class Plan:
    """Who asks, and what kind of question."""

    character: str
    question_type: str
    difficulty: str


def plan_messages(document: Document, earlier: list[Plan]) -> Messages:
    """Ask for a Plan that differs from the earlier ones of the document."""
    types = "\n".join(f"  {name}: {meaning}" for name, meaning in QUESTION_TYPES.items())
    levels = "\n".join(f"  {name}: {meaning}" for name, meaning in DIFFICULTIES.items())
    used = "; ".join(f"{plan.character}, {plan.question_type}" for plan in earlier)
    rest = f"Не повторяй того, что уже выбрано: {used}.\n" if used else ""
    return _messages(
        "Придумай, кто мог бы искать этот документ и как он спросит.\n"
        "character: кто спрашивает, одна короткая фраза.\n"
        f"question_type: одно из\n{types}\n"
        f"difficulty: кому по силам вопрос, одно из\n{levels}\n"
        f"{rest}"
        'Ответь так: {"character": "...", "question_type": "...", "difficulty": "..."}\n\n'
        f"{_shown(document)}"
    )


def query_messages(document: Document, plan: Plan, words: int, earlier: list[str]) -> Messages:
    """Ask for the query of a Plan, about `words` words long and unlike the earlier ones."""
    used = "".join(f"\n- {query}" for query in earlier)
    rest = f"Спроси о другом, чем в этих запросах:{used}\n" if used else ""
    lang = LANGUAGES.get(document.lang, f"с кодом {document.lang}")
    return _messages(
        "Напиши один поисковый запрос, ответ на который есть в документе.\n"
        f"Кто спрашивает: {plan.character}.\n"
        f"Вид запроса: {QUESTION_TYPES[plan.question_type]}.\n"
        f"Сложность: {DIFFICULTIES[plan.difficulty]}.\n"
        f"Длина: около {words} слов. Язык: {lang}.\n"
        "Запрос понятен без документа, не упоминает его и не повторяет его предложений дословно.\n"
        f"{rest}"
        'Ответь так: {"query": "..."}\n\n'
        f"{_shown(document)}"
    )


def judge_messages(document: Document, query: str) -> Messages:
    """Ask how well the document answers the query, from 1 to 5."""
    return _messages(
        "Оцени, насколько документ отвечает на запрос.\n"
        "5: полный и прямой ответ; 4: ответ есть, но неполный; 3: документ о том же, ответа мало;\n"
        "2: общая тема, или запрос непонятен без документа; 1: документ не о том.\n"
        'Ответь так: {"score": 3}\n\n'
        f"Запрос: {query}\n\n"
        f"{_shown(document)}"
    )


def _messages(content: str) -> Messages:
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]


def _shown(document: Document) -> str:
    return f"Документ:\n<<<\n{document.whole[:MAX_DOCUMENT_CHARACTERS]}\n>>>"
