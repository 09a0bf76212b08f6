"""The default model: tells the language of a text, with py3langid (a trained model inside its package).

    "Bonjour tout le monde"  ->  {"language": "fr", "probability": 0.9451}

A model is any class with `predict`. `setup` runs once in each model process, before the first prediction.
"""

from py3langid.langid import MODEL_FILE, LanguageIdentifier


class Language:
    def setup(self):
        # norm_probs: a probability between 0 and 1 in place of a raw score
        self.identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def predict(self, input: str) -> dict:
        language, probability = self.identifier.classify(input)
        return {"language": language, "probability": round(float(probability), 4)}
