"""The model of `make demo`: its questions and answers, how it is trained on them and how it is examined."""
