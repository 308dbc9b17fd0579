"""Text to token ids: prompts, truncation and counts. Needs the model's `tokenizer.json`, never its weights."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal, NamedTuple, get_args, overload

import numpy as np
import tokenizers
from numpy.typing import NDArray

from .checks import check_encodable, check_texts, iterate_texts
from .errors import InputTypeError, InputValueError, ModelFolderError, TextTooLongError
from .long_texts import PIECE_CHARACTERS, Divider
from .model_folder import ModelFolder, open_model

Role = Literal["query", "document", "raw"]
"""What a text is for, which decides its prompt; a "raw" text gets none."""

ROLES: tuple[Role, ...] = get_args(Role)

PROMPT_NAMES: Mapping[Role, tuple[str, ...]] = {
    "query": ("query",),
    "document": ("document", "passage", "corpus"),
    "raw": (),
}
"""The names of a role's prompt. The first that the model has applies, in sentence-transformers' order."""


@dataclass(frozen=True)
class TokenizedText:
    """The token ids of a text, int32, cut to the model's maximum, and its number of tokens before the cut."""

    ids: NDArray[np.int32]
    tokens: int

    @property
    def is_cut(self) -> bool:
        """Whether the text was cut to the model's maximum."""
        return self.tokens > len(self.ids)


class Token(NamedTuple):
    """A token: its id, its text in the vocabulary, and whether it is a special token that the tokenizer added.

    `start` and `stop` are its place in the prompted text, in characters; None for a special token.
    """

    id: int
    text: str
    special: bool
    start: int | None
    stop: int | None


class Tokenizer:
    """The tokenizer of a model: applies prompts, counts tokens, cuts at the model's maximum.

    It loads without the model's weights, for programs that only split or count. Threads may share it.

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
        self._path = path = model.file("tokenizer.json")
        with _library_errors(f"tokenizers {tokenizers.__version__} cannot read {path}"):
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
            self._tokenizer.no_padding()
            self._special_tokens = self._tokenizer.num_special_tokens_to_add(is_pair=False)
            self._tokenizer.enable_truncation(self.max_tokens)
        self._for_long_texts: tuple[tokenizers.Tokenizer, Divider] | None = None
        self._skipped = tuple(prompt for prompt in self.prompts.values() if prompt.endswith(": "))

    def prompt_for(self, role: Role | None = None, *, prompt: str | None = None, prompt_name: str | None = None) -> str:
        """Return the text to put before each input.

        `prompt` takes precedence over `prompt_name`. Without either, this is the role's prompt, or without a role the
        model's default prompt; "" if the model has no such prompt.

        This matches sentence-transformers, with two exceptions. There, every model has prompts called "query" and
        "document", empty unless the checkpoint sets them. A checkpoint whose prompt is called "passage" therefore gets
        no prompt for documents; here it gets its own. And there, `prompt_name="document"` is then an empty prompt; here
        it is an error unless the model has no prompts at all.

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
        known = ", ".join(map(repr, self.prompts)) or "none"
        raise InputValueError(f"the model has no prompt named {prompt_name!r}; it has {known}")

    def prompted(self, text: str, prompt: str) -> str:
        """Return a text with a prompt before it.

        A prompt of the checkpoint that ends in ": ", as E5's do, is not repeated if the text already starts with it;
        sentence-transformers would repeat it. Any other prompt goes before every text, as in sentence-transformers.

        Example:
            >>> Tokenizer("models/sample").prompted("apple", "a")
            'aapple'
        """
        skip = prompt in self._skipped and str.startswith(text, prompt)
        return str.__add__("" if skip else prompt, text)  # a str, even if the text's class overrides addition

    def tokenize(self, texts: Iterable[str], prompt: str = "", *, start: int = 0) -> list[TokenizedText]:
        """Return the token ids of each text with `prompt` before it; see :meth:`prompted`.

        A text of megabytes is tokenised in pieces, to the same tokens, with little memory.

        Args:
            texts: the texts.
            prompt: the text of a prompt, "" for none.
            start: position of the first text, for messages.

        Raises:
            InputTypeError: a text is not a str; the message names its position.
            InputValueError: a text is not valid Unicode.
            TextTooLongError: a text has a million characters without a space; the message names its position.
            ModelFolderError: the tokenizer is damaged.
        """
        tokenized = []
        for position, text in enumerate(iterate_texts(texts), start):
            check_texts([text], position)
            try:
                tokenized.append(self._tokenize(self.prompted(text, prompt)))
            except TextTooLongError as error:
                raise TextTooLongError(f"the text at position {position} cannot be tokenised: {error}") from error
        return tokenized

    def tokens(self, texts: Iterable[str], prompt: str = "", *, special_tokens: bool = True) -> list[list[Token]]:
        """Return the tokens of each text for people to read, up to the model's maximum.

        Example:
            >>> [token.text for token in Tokenizer("models/sample").tokens(["an embedding"])[0]]
            ['[CLS]', 'an', 'em', '##bed', '##ding', '[SEP]']
        """
        described = []
        for position, text in enumerate(iterate_texts(texts)):
            check_texts([text], position)
            for piece in self._beginnings(self.prompted(text, prompt)):
                with _library_errors(self._cannot_tokenize(piece)):
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
        """Raise :class:`TextTooLongError` if a text was cut.

        Args:
            text: the text's tokens.
            what: what the message calls the text.
            remedy: the option that allows cutting, as the caller's user writes it.
        """
        if text.is_cut:
            raise TextTooLongError(
                f"{what} has {text.tokens} tokens, the model's maximum is {self.max_tokens}; split it, or let it be "
                f"cut with {remedy}"
            )

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
        """Return the number of tokens of a text, or of each text, before any cut.

        The count includes special tokens and the prompt. A text with more than `max_tokens` tokens would be cut.

        Raises:
            InputTypeError: an input is not a str; the message names its position.
            InputValueError: an input is not valid Unicode, or the model has no prompt of that name.
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

    def _tokenize(self, text: str) -> TokenizedText:
        # One text per call: an Encoding takes about 200 bytes per token, and only its ids are kept. Unlike `encode`,
        # the batch method releases the interpreter lock and leaves out character offsets.
        if len(text) > PIECE_CHARACTERS:
            return self._tokenize_in_pieces(text)
        with _library_errors(self._cannot_tokenize(text)):
            encoding = self._tokenizer.encode_batch_fast([text])[0]
        cut = sum(len(rest.ids) - self._special_tokens for rest in encoding.overflowing)
        return self._tokenized(text, encoding, len(encoding.ids) + cut)

    def _tokenize_in_pieces(self, text: str) -> TokenizedText:
        """Keep only as many pieces as the model takes, but count the tokens of all."""
        untruncated, divider = self._long_texts()
        kept: list[tokenizers.Encoding] = []
        tokens = 0
        for piece in divider.pieces(text):
            with _library_errors(self._cannot_tokenize(piece)):
                encoding = untruncated.encode_batch_fast([piece], add_special_tokens=False)[0]
            if tokens < self.max_tokens:
                kept.append(encoding)
            tokens += len(encoding.ids)
        with _library_errors(self._cannot_tokenize(text)):
            merged = tokenizers.Encoding.merge(kept, growing_offsets=False)
            whole = self._tokenizer.post_process(merged)  # cuts, and adds special tokens
        return self._tokenized(text, whole, tokens + self._special_tokens)

    def _tokenized(self, text: str, encoding: tokenizers.Encoding, tokens: int) -> TokenizedText:
        if not encoding.ids:
            raise ModelFolderError(f"{self._path} makes no token of {text[:40]!r}")
        ids = np.array(encoding.ids, dtype=np.uint32)  # as int32, numpy 1 would wrap larger numbers without an error
        if (largest := int(ids.max())) > np.iinfo(np.int32).max:
            raise ModelFolderError(f"{self._path} makes a token id that no model has: {largest}")
        return TokenizedText(ids.astype(np.int32), tokens)

    def _beginnings(self, text: str) -> Iterator[str]:
        """Iterate over longer and longer beginnings of a text, the last of which is the whole text."""
        return accumulate(self._long_texts()[1].pieces(text) if len(text) > PIECE_CHARACTERS else [text])

    def _long_texts(self) -> tuple[tokenizers.Tokenizer, Divider]:
        """Return the tokenizer without truncation and its divider, made for the first long text.

        Not a cached_property: before Python 3.12 it holds a lock, on which a child forked meanwhile would wait forever.
        """
        if self._for_long_texts is None:
            description = self._tokenizer.to_str()
            untruncated = tokenizers.Tokenizer.from_str(description)
            untruncated.no_truncation()
            self._for_long_texts = untruncated, Divider(description)
        return self._for_long_texts

    def _cannot_tokenize(self, text: str) -> str:
        return f"{self._path} cannot tokenise {text[:40]!r}"


@contextmanager
def _library_errors(what: str) -> Iterator[None]:
    """Raise :class:`ModelFolderError` in place of any error of the Rust library.

    These are plain Exceptions, or after a panic PanicException, a BaseException that cannot be imported.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelFolderError(f"{what}: {error}") from error
