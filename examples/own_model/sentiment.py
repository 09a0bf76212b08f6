"""A model of your own: how good or bad the words of a text are."""


class Sentiment:
    def setup(self):
        """Runs once in each model process: load weights, warm up."""
        self.words = {"love": 2, "good": 1, "fine": 1, "bad": -1, "awful": -2}

    def predict(self, input: str) -> dict:
        score = sum(self.words.get(word.strip(".,!?"), 0) for word in input.lower().split())
        return {"score": score, "mood": "good" if score > 0 else "bad" if score < 0 else "none"}
