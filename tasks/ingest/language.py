"""The language of a text, by py3langid (its model comes with the package)."""

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from tasks.contract.stage import StageError

READ_CHARACTERS = 1000
"""Enough to tell; a longer text costs time and changes nothing."""

ODDS = 10.0
"""A wanted language is kept unless another is this much more probable.

On short Russian texts the likeliest language is a neighbour (bg, uk, mk) in 4 to 10 % of the
cases, but is 10 times likelier than Russian in under 0.3 %.
"""

NEIGHBOURS = [
    *("ru", "uk", "be", "bg", "sr", "mk", "kk", "ky", "tt", "ba", "tg", "mn", "az", "uz", "hy"),
    *("ka", "en", "de", "fr", "es", "it", "pt", "nl", "pl", "cs", "ro", "tr", "fi", "sv", "el"),
    *("he", "ar", "fa", "hi", "zh", "ja", "ko", "vi", "id"),
]
"""Languages a text may turn out to be in; 140 would be guessed at on every nickname."""


class LanguageDetector:
    """Tells the BCP 47 tag of texts, with a bias to the wanted languages."""

    def __init__(self, wanted: list[str]) -> None:
        """Load the model.

        Raises:
            StageError: A wanted tag is no language of the identifier.
        """
        self._wanted = {tag.split("-")[0].lower(): tag for tag in reversed(wanted)}
        self._identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        unknown = sorted(set(self._wanted) - set(self._identifier.labels))
        if unknown:
            raise StageError(
                f"ingest.languages {unknown} cannot be identified: give sources of these a lang, "
                f"or choose from {' '.join(sorted(self._identifier.labels))}"
            )
        self._identifier.set_languages(sorted({*NEIGHBOURS, *self._wanted}))

    def detect(self, text: str) -> str:
        """Tag of the wanted language, or the code of the one that is far more probable."""
        ranked = self._identifier.rank(text[:READ_CHARACTERS])
        likeliest, probability = ranked[0]
        code, own = next((code, share) for code, share in ranked if code in self._wanted)
        return self._wanted[code] if probability <= ODDS * own else likeliest
