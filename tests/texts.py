"""Texts that the tests share: many lengths, scripts and oddities."""

TEXTS = [
    "how much protein should a female eat",
    "The quick brown fox jumps over the lazy dog.",
    "",
    "Café naïve Zürich, „Überraschung“ und ſ",
    "москва 東京 서울 العربية हिन्दी",
    "🙂👩‍👩‍👧‍👦 e\u0301 x² ½ №",
    "a" * 150,
    "one. " * 40,
    "def f(x): return x['key'] + 0xFF  # 3.14159",
    "e-mail@example.org https://example.org/path?query=1&b=2",
    " leading and trailing spaces \t\n",
    "Embeddings map a text to a vector, such that texts of similar meaning get vectors that point the same way. " * 5,
]
