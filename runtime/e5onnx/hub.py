"""Files from the Hugging Face hub and to it. Only this module uses the network, and only for a hub id.

huggingface_hub does the work and honours HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT; this module adds errors
that say what to do. It is imported for a hub id, never for a local folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from .errors import InputValueError, MissingDependencyError, ModelDownloadError, ModelNotFoundError, ModelUploadError
from .first_use import is_commit
from .manifest import CHECKPOINT_FILES, MANIFEST

try:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
    from huggingface_hub.utils.tqdm import tqdm
except ImportError as error:  # tokenizers installs it, but the smallest installations leave it out
    raise MissingDependencyError("loading from a hub id needs huggingface_hub: pip install huggingface_hub") from error

# The base class of the HTTP library's errors, which a failure in the middle of a download raises: of requests up to
# huggingface_hub 0.36, of httpx since then.
_HTTP_ERROR: type[Exception] = hub_errors.HfHubHTTPError.__bases__[0]


class _TerminalBar(tqdm):
    """A progress bar that is shown on a terminal only, as huggingface_hub shows those of single files."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **{"disable": None, **options})  # type: ignore[no-untyped-call]  # without types


class HubCheckpoint(NamedTuple):
    """A repository that holds a checkpoint, not an exported model: its commit."""

    commit: str


def download_model(
    repo_id: str, *, revision: str | None, local_files_only: bool, wanted: Callable[[Path], list[str]]
) -> Path | HubCheckpoint:
    """Download the files of an exported model into the hub's cache and return their folder.

    Of a checkpoint nothing is downloaded.

    Args:
        repo_id: "owner/name".
        revision: branch, tag or commit; None for the main branch. All files come from the same commit.
        local_files_only: use only the cache.
        wanted: takes the folder with the manifest and returns the other files to download.
    """
    with _translated_errors(repo_id, revision, local_files_only):
        try:
            folder = _file(repo_id, MANIFEST, revision, local_files_only).parent
        except hub_errors.LocalEntryNotFoundError:
            raise
        except hub_errors.EntryNotFoundError as error:
            found = huggingface_hub.model_info(repo_id, revision=revision or "main")
            if found.sha and {file.rfilename for file in found.siblings or ()} & {*CHECKPOINT_FILES}:
                return HubCheckpoint(found.sha)
            raise ModelNotFoundError(
                f"{repo_id} on the hub is neither an exported model nor a checkpoint: it has no {MANIFEST}, "
                f"{' or '.join(CHECKPOINT_FILES)}"
            ) from error
        for file in wanted(folder):
            _file(repo_id, file, folder.name, local_files_only)  # the cache names the folder after the commit
    return folder


def download_checkpoint(repo_id: str, *, revision: str | None, patterns: list[str], ignored: list[str]) -> Path:
    """Download a checkpoint's files that match `patterns` and not `ignored` into the cache; return their folder."""
    with _translated_errors(repo_id, revision, local_files_only=False):
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored, tqdm_class=_TerminalBar
        )
    return Path(folder)


def read_licence(repo_id: str, revision: str | None) -> dict[str, str]:
    """Return what the card of a repository says of its licence, by the card's keys; nothing if there is none.

    Raises:
        ModelUploadError: the hub is unreachable.
    """
    with _upload_errors(f"reading the licence of {repo_id} from the hub"):
        try:
            data = huggingface_hub.model_info(repo_id, revision=revision or "main").card_data
        except (hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError, hub_errors.HFValidationError):
            return {}
    keys = ("license", "license_name", "license_link")
    return {key: value for key in keys if isinstance(value := getattr(data, key, None), str)}


def upload_files(
    repo_id: str, files: Mapping[str, Path | bytes], *, private: bool, revision: str | None, message: str, expected: str
) -> str:
    """Upload files to a model repository in one commit, making the repository and the branch if need be.

    Args:
        repo_id: "owner/name".
        files: the files, or their contents, by their paths in the repository.
        private: whether the repository has to be private.
        revision: the branch; None for the main branch.
        message: the message of the commit.
        expected: a file that a repository which holds others must have, to be overwritten.

    Returns:
        The address of the commit.

    Raises:
        InputValueError: `repo_id` is not a hub id, or the repository may not be overwritten.
        ModelUploadError: there is no token, or the hub is unreachable or refuses the upload.
    """
    if huggingface_hub.get_token() is None:
        raise ModelUploadError("uploading needs a token that may write: set HF_TOKEN, or run `hf auth login`")
    with _upload_errors(f"uploading to {repo_id} on the hub"):
        # None leaves it to the account's settings, by which new repositories may be private
        huggingface_hub.create_repo(repo_id, private=private or None, exist_ok=True)
        try:
            there = huggingface_hub.model_info(repo_id, revision=revision or "main")
            is_new_branch = False
        except hub_errors.RevisionNotFoundError:
            there = huggingface_hub.model_info(repo_id, revision="main")
            is_new_branch = True
        names = {file.rfilename for file in there.siblings or ()}
        if expected not in names and names - {".gitattributes", "README.md"}:
            raise InputValueError(
                f"{repo_id} on the hub holds something other than a model folder, and its files would be "
                "overwritten: name another repository"
            )
        if private and not there.private:
            raise InputValueError(f"{repo_id} on the hub exists and is public: make it private there, or name another")
        if is_new_branch:
            huggingface_hub.create_branch(repo_id, branch=str(revision))
        operations = [huggingface_hub.CommitOperationAdd(name, file) for name, file in files.items()]
        commit = huggingface_hub.create_commit(repo_id, operations, commit_message=message, revision=revision)
    return str(commit.commit_url)


def _file(repo_id: str, file: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the path of a file in the hub's cache; download it if it is missing and `local_files_only` is False."""
    cached = huggingface_hub.try_to_load_from_cache(repo_id, file, revision=revision)
    if local_files_only:
        # From version 2 on, hf_hub_download(local_files_only=True) still asks the hub for its user agent.
        if not isinstance(cached, str):
            raise hub_errors.LocalEntryNotFoundError(f"{file} is not in the cache")
        return Path(cached)
    if isinstance(cached, str) and is_commit(revision):
        return Path(cached)
    try:
        _reach_hub()
    except hub_errors.LocalEntryNotFoundError:
        if isinstance(cached, str):
            return Path(cached)
        raise
    return Path(huggingface_hub.hf_hub_download(repo_id, file, revision=revision))


@functools.cache
def _reach_hub() -> None:
    """Check once that the hub answers: if it does not, hf_hub_download retries for 24 s for each file."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (_HTTP_ERROR, OSError) as error:
        raise hub_errors.LocalEntryNotFoundError("the hub does not answer") from error


@contextmanager
def _upload_errors(what: str) -> Iterator[None]:
    """Raise the package's errors in place of huggingface_hub's."""
    try:
        yield
    except hub_errors.HFValidationError as error:
        raise InputValueError(f"{what} is not possible: {error}") from error
    except InputValueError:
        raise
    except hub_errors.OfflineModeIsEnabled as error:
        raise ModelUploadError(f"{what} is not possible while HF_HUB_OFFLINE is set") from error
    # ValueError and RuntimeError: a refused large file, and hf_xet, which uploads large files if it is installed
    except (_HTTP_ERROR, OSError, ValueError, RuntimeError) as error:
        raise ModelUploadError(f"{what} failed: {error}") from error


@contextmanager
def _translated_errors(repo_id: str, revision: str | None, local_files_only: bool) -> Iterator[None]:
    """Raise the package's errors in place of huggingface_hub's."""
    where = f"{repo_id} (revision {revision})" if revision else repo_id
    try:
        yield
    except hub_errors.GatedRepoError as error:
        raise ModelDownloadError(f"{where} is gated: accept its terms on its hub page, then set HF_TOKEN") from error
    except hub_errors.RepositoryNotFoundError as error:
        raise ModelNotFoundError(
            f"there is no folder {repo_id} here, and no repository of this name on the hub "
            "(a private one needs HF_TOKEN)"
        ) from error
    except hub_errors.RevisionNotFoundError as error:
        raise ModelNotFoundError(f"{repo_id} on the hub has no revision {revision!r}") from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled) as error:
        remedy = "allow downloads" if local_files_only else "check the network and HF_HUB_OFFLINE"
        raise ModelDownloadError(
            f"there is no folder {repo_id} here, and {where} is not in the hub's cache and was not downloaded; "
            f"{remedy}, or export it on a machine with a network and copy the folder"
        ) from error
    except hub_errors.HFValidationError as error:
        raise ModelNotFoundError(f"{repo_id!r} is neither a folder nor a possible hub id: {error}") from error
    except ModelNotFoundError:
        raise
    except (_HTTP_ERROR, OSError) as error:
        raise ModelDownloadError(f"downloading {where} from the hub failed: {error}") from error
