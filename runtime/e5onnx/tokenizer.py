"""Text to token ids: prompts, truncation and counts. Needs the model's `tokenizer.json`, never its weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple, overload

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .errors import InputTypeError, InputValueError, ModelFolderError, TextTooLongError
from .long_texts import PIECE_CHARACTERS, Divider
from .model_folder import ModelFolder, open_model

Role = Literal["query", "document", "raw"]
"""What texts are for, which decides on their prompt; "raw" texts get none."""

PROMPT_NAMES: Mapping[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "raw": (),
}
"""The prompts that belong to a role: the first that the model has, in sentence-transformers' order."""


@dataclass(frozen=True)
class TokenizedText:
    """Token ids of one text, int32, cut to the model's maximum, and the number of tokens it had before."""

    ids: NDArray[np.int32]
    tokens: int

    @property
    def is_cut(self) -> bool:
        """Whether the text had more tokens than the model takes."""
        return self.tokens > len(self.ids)


class Token(NamedTuple):
    """A token of a text: its id, its text in the vocabulary, and whether the tokenizer put it there.

    `start` and `stop` are its place in the text with its prompt, in characters; None for what the tokenizer put there.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """The tokenizer of a model: applies prompts, counts tokens, cuts at the model's maximum.

    Loads in milliseconds and without the model's weights, for programs that only split or count. Threads may share it.

    Example:
        >>> tokenizer = Tokenizer("models/sample")
        >>> tokenizer.count_tokens("How many tokens is this?")
        9
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | ModelFolder,
        *,
        revision: str | None = None,
        local_files_only: bool = False,
    ) -> None:
        """Load the tokenizer of a model folder or hub id; see :class:`e5onnx.Encoder` for the arguments and errors."""
        if not isinstance(model, ModelFolder):
            model = open_model(model, revision=revision, local_files_only=local_files_only)
        self.prompts = dict(model.manifest.prompts)
        self.default_prompt_name = model.manifest.default_prompt_name
        self.max_tokens = model.manifest.max_tokens
        path = model.file("tokenizer.json")
        self._path = path
        with _explained(f"{path} is not a tokenizer that tokenizers {tokenizers.__version__} reads"):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            self._tokenizer.enable_truncation(self.max_tokens)
        self._for_long_texts: tuple[tokenizers.Tokenizer, Divider] | None = None
        self._skipped = tuple(prompt for prompt in self.prompts.values() if prompt.endswith(": "))

    def prompt_for(self, role: Role | None = None, *, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """Return the text to put before each input.

        `prompt` wins over `prompt_name`. Without either, it is the prompt of the role, or the model's default prompt
        if no role is given; where there is none, "".

        This is what sentence-transformers does, with two exceptions. There every model has prompts called "query" and
        "document", empty unless the checkpoint sets them. So a checkpoint that calls its prompt "passage" gets none
        for documents; here it gets its own. And `prompt_name="document"` gets none there; here it is an error, unless
        the model has no prompts at all.

        Raises:
            InputValueError: the model has no prompt called `prompt_name`.
        """
        if prompt is not None:
            if not isinstance(prompt, str):
                raise InputTypeError(f"prompt must be a str, got {type(prompt).__name__}")
            check_encodable(prompt, "the prompt")
            return prompt
        if prompt_name is None:
            names = [self.default_prompt_name] if role is None else PROMPT_NAMES[role]
            prompt_name = next((name for name in names if name in self.prompts), None)
        if prompt_name is None:
            return ""
        if not isinstance(prompt_name, str):
            raise InputTypeError(f"prompt_name must be a str, got {type(prompt_name).__name__}")
        if prompt_name in self.prompts:
            return self.prompts[prompt_name]
        if prompt_name in ("query", "document") and not any(self.prompts.values()):
            return ""
        known = ", ".join(map(repr, self.prompts)) or "none at all"
        raise InputValueError(f"the model has no prompt named {prompt_name!r}; it has {known}")

    def prompted(self, text: str, prompt: str) -> str:
        """Return a text with a prompt before it.

        One of the checkpoint's own prompts that ends in ": ", as E5's do, is not put before a text that begins with it
        already. Here sentence-transformers would repeat it. Any other prompt is put before every text, as it does.

        Example:
            >>> Tokenizer("models/sample").prompted("apple", "a")
            'aapple'
        """
        skip = prompt in self._skipped and str.startswith(text, prompt)
        return str.__add__("" if skip else prompt, text)  # a str, where the class of the text adds in another way

    def tokenize(self, texts: Iterable[str], prompt: str = "", *, start: int = 0) -> list[TokenizedText]:
        """Return the token ids of each text with `prompt` before it; see :meth:`prompted`.

        A text of megabytes is tokenised in pieces, which takes little memory and gives the same tokens.

        Args:
            texts: the texts.
            prompt: the text of a prompt, "" for none.
            start: position of the first text, for messages.

        Raises:
            InputTypeError: a text is not a str; the message names its position.
            InputValueError: a text is not valid Unicode.
            TextTooLongError: a text has a stretch of a million characters without a space; the message names its
                position.
            ModelFolderError: the tokenizer is damaged.
        """
        tokenized = []
        for position, text in enumerate(_several(texts), start):
            check_texts([text], position)
            try:
                tokenized.append(self._tokenize(self.prompted(text, prompt)))
            except TextTooLongError as error:
                raise TextTooLongError(f"the text at position {position} cannot be tokenised: {error}") from error
        return tokenized

    def tokens(self, texts: Iterable[str], prompt: str = "", *, special_tokens: bool = True) -> list[list[Token]]:
        """Return the tokens of each text, for people to look at; those beyond the maximum are left out.

        Example:
            >>> [token.text for token in Tokenizer("models/sample").tokens(["an embedding"])[0]]
            ['[CLS]', 'an', 'em', '##bed', '##ding', '[SEP]']
        """
        described = []
        for position, text in enumerate(_several(texts)):
            check_texts([text], position)
            for piece in self._beginnings(self.prompted(text, prompt)):
                with self._explained(piece):
                    # the batch method releases the interpreter lock
                    (encoding,) = self._tokenizer.encode_batch([piece], add_special_tokens=special_tokens)
                if encoding.overflowing:
                    break
            described.append(
                [
                    Token(number, token, bool(special), *((None, None) if special else offsets))
                    for number, token, special, offsets in zip(
                        encoding.ids, encoding.tokens, encoding.special_tokens_mask, encoding.offsets, strict=True
                    )
                ]
            )
        return described

    def check_length(self, text: TokenizedText, what: str, remedy: str) -> None:
        """Raise :class:`TextTooLongError` for a text that is longer than the model's maximum.

        Args:
            text: the text's tokens.
            what: names the text, for the message.
            remedy: the option that would let it be cut, as the caller's user writes it.
        """
        if text.is_cut:
            raise TextTooLongError(
                f"{what} has {text.tokens} tokens, the model's maximum is {self.max_tokens}; split it, or let it be "
                f"cut with {remedy}"
            )

    def _tokenize(self, text: str) -> TokenizedText:
        # One text a call: an Encoding takes some 200 bytes a token, and only its ids are kept. The batch method, since
        # unlike `encode` it releases the interpreter lock and leaves out character offsets.
        if len(text) > PIECE_CHARACTERS:
            return self._tokenize_in_pieces(text)
        with self._explained(text):
            encoding = self._tokenizer.encode_batch_fast([text])[0]
        cut = sum(len(rest.ids) - self._special_tokens for rest in encoding.overflowing)
        return self._tokenized(text, encoding, len(encoding.ids) + cut)

    def _tokenize_in_pieces(self, text: str) -> TokenizedText:
        """Keep as many pieces as the model takes, and count the tokens of all."""
        untruncated, divider = self._long_texts()
        kept: list[tokenizers.Encoding] = []
        tokens = 0
        for piece in divider.pieces(text):
            with self._explained(piece):
                encoding = untruncated.encode_batch_fast([piece], add_special_tokens=False)[0]
            if tokens < self.max_tokens:
                kept.append(encoding)
            tokens += len(encoding.ids)
        with self._explained(text):
            merged = tokenizers.Encoding.merge(kept, growing_offsets=False)
            whole = self._tokenizer.post_process(merged)  # cuts it, and adds special tokens
        return self._tokenized(text, whole, tokens + self._special_tokens)

    def _tokenized(self, text: str, encoding: tokenizers.Encoding, tokens: int) -> TokenizedText:
        if not encoding.ids:
            raise ModelFolderError(f"{self._path} makes no token at all of {text[:40]!r}")
        ids = np.array(
            encoding.ids, dtype=np.uint32
        )  # numpy before 2 wraps a number that does not fit, without an error
        if (largest := int(ids.max())) > np.iinfo(np.int32).max:
            raise ModelFolderError(f"{self._path} makes a token id that no model has: {largest}")
        return TokenizedText(ids.astype(np.int32), tokens)

    def _beginnings(self, text: str) -> Iterator[str]:
        """Yield ever longer beginnings of a text, at the end all of it."""
        if len(text) > PIECE_CHARACTERS:
            end = 0
            for piece in self._long_texts()[1].pieces(text):
                end += len(piece)
                yield text[:end]
        else:
            yield text

    def _long_texts(self) -> tuple[tokenizers.Tokenizer, Divider]:
        """Return the same tokenizer without truncation, and what divides texts for it; made for the first long text.

        No lock, as Python's cached_property had one before 3.12: a child forked meanwhile would wait for it for ever.
        """
        if self._for_long_texts is None:
            description = self._tokenizer.to_str()
            untruncated = tokenizers.Tokenizer.from_str(description)
            untruncated.no_truncation()
            self._for_long_texts = untruncated, Divider(description)
        return self._for_long_texts

    @contextmanager
    def _explained(self, text: str) -> Iterator[None]:
        with _explained(f"{self._path} cannot tokenize {text[:40]!r}"):
            yield

    @overload
    def count_tokens(  # type: ignore[overload-overlap]  # a str is an iterable of str, and comes first
        self, inputs: str, *, prompt_name: str | None = ..., prompt: str | None = ...
    ) -> int: ...
    @overload
    def count_tokens(
        self, inputs: Iterable[str], *, prompt_name: str | None = ..., prompt: str | None = ...
    ) -> list[int]: ...
    def count_tokens(
        self, inputs: str | Iterable[str], *, prompt_name: str | None = None, prompt: str | None = None
    ) -> int | list[int]:
        """Return the number of tokens of a text, or of each text, as they would be without a maximum.

        Special tokens and the prompt, if one is named, are counted. Texts with more than `max_tokens` would be cut.

        Raises:
            InputTypeError: an input is not a str; the message names its position.
            InputValueError: an input cannot be encoded, or there is no prompt of that name.
            TextTooLongError: see :meth:`tokenize`.

        Example:
            >>> Tokenizer("models/sample").count_tokens(["one", "and two"])
            [3, 4]
        """
        prefix = self.prompt_for(prompt=prompt, prompt_name=prompt_name)
        if isinstance(inputs, str):
            return self.tokenize([inputs], prefix)[0].tokens
        return [
            self.tokenize([text], prefix, start=position)[0].tokens
            for position, text in enumerate(iterate_texts(inputs))
        ]


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Raise :class:`ModelFolderError` for whatever the Rust library raises.

    That is a plain Exception, or on a defect of its own a PanicException, which is a BaseException and has no module.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFolderError(f"{what}: {error}") from error


def iterate_texts(inputs: Iterable[str]) -> Iterable[str]:
    """Return `inputs` if it is a collection of texts with an order; raise :class:`InputTypeError` if not."""
    dimensions = getattr(inputs, "ndim", 1)  # arrays and data frames: one of two dimensions iterates over its columns
    unordered = isinstance(inputs, (bytes, bytearray, memoryview, Mapping, set, frozenset))
    if unordered or not isinstance(inputs, Iterable) or dimensions != 1:
        shape = f" of {dimensions} dimensions" if dimensions != 1 else ""
        raise InputTypeError(f"expected a str or an ordered iterable of str, got {type(inputs).__name__}{shape}")
    return inputs


def _several(texts: Iterable[str]) -> Iterable[str]:
    if isinstance(texts, str):
        raise InputTypeError("expected an iterable of str, got one str: put it into a list")
    return iterate_texts(texts)


def check_texts(texts: Iterable[str], start: int = 0) -> None:
    """Raise an error that names the position of the first text that is no str or has no UTF-8 form."""
    for position, text in enumerate(texts, start):
        if not isinstance(text, str):
            raise InputTypeError(f"expected a str at position {position}, got {type(text).__name__}")
        check_encodable(text, f"the text at position {position}")


def check_encodable(text: str, what: str) -> None:
    """Raise :class:`InputValueError` if `text` holds a lone surrogate, which no encoding of Unicode can express."""
    try:
        str.encode(text)
    except UnicodeEncodeError as error:
        raise InputValueError(
            f"{what} holds the lone surrogate U+{ord(text[error.start]):04X} at character {error.start}, "
            "which is not valid Unicode; repair it with "
            'text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")'
        ) from error
