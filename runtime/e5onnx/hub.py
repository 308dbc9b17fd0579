"""Files from the Hugging Face hub. Only this module uses the network, and only for a hub id.

huggingface_hub does the work and honours HF_HOME, HF_HUB_OFFLINE, HF_TOKEN and HF_ENDPOINT; this module adds errors
that say what to do. It is imported for a hub id, never for a local folder.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import MissingDependencyError, ModelDownloadError, ModelNotFoundError
from .manifest import MANIFEST

try:
    import huggingface_hub
    from huggingface_hub import errors as hub_errors
except ImportError as error:  # tokenizers installs it, but the smallest installations leave it out
    raise MissingDependencyError("loading from a hub id needs huggingface_hub: pip install huggingface_hub") from error

# The base class of the HTTP library's errors, which a failure in the middle of a download raises: of requests up to
# huggingface_hub 0.36, of httpx since then.
_HTTP_ERROR: type[Exception] = hub_errors.HfHubHTTPError.__bases__[0]


def download_model(
    repo_id: str, *, revision: str | None, local_files_only: bool, wanted: Callable[[Path], list[str]]
) -> Path:
    """Download the files of an exported model into the hub's cache and return their folder.

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
            name = repo_id.rpartition("/")[2]
            raise ModelNotFoundError(
                f"{repo_id} on the hub has no {MANIFEST}: it is a checkpoint, not an exported model. "
                f"Export it first: e5onnx export {repo_id} models/{name}"
            ) from error
        for file in wanted(folder):
            _file(repo_id, file, folder.name, local_files_only)  # the cache names the folder after the commit
    return folder


def download_checkpoint(repo_id: str, *, revision: str | None, patterns: list[str], ignored: list[str]) -> Path:
    """Download a checkpoint's files that match `patterns` and not `ignored` into the cache; return their folder."""
    with _translated_errors(repo_id, revision, local_files_only=False):
        folder = huggingface_hub.snapshot_download(
            repo_id, revision=revision, allow_patterns=patterns, ignore_patterns=ignored
        )
    return Path(folder)


def _file(repo_id: str, file: str, revision: str | None, local_files_only: bool) -> Path:
    """Return the path of a file in the hub's cache; download it if it is missing and `local_files_only` is False."""
    cached = huggingface_hub.try_to_load_from_cache(repo_id, file, revision=revision)
    if local_files_only:
        # From version 2 on, hf_hub_download(local_files_only=True) still asks the hub for its user agent.
        if not isinstance(cached, str):
            raise hub_errors.LocalEntryNotFoundError(f"{file} is not in the cache")
        return Path(cached)
    if not isinstance(cached, str):
        _reach_hub()
    return Path(huggingface_hub.hf_hub_download(repo_id, file, revision=revision))


@functools.cache
def _reach_hub() -> None:
    """Check once that the hub answers: if it does not, hf_hub_download retries for 24 s for each file."""
    try:
        huggingface_hub.get_session().head(huggingface_hub.constants.ENDPOINT, timeout=10)
    except (_HTTP_ERROR, OSError) as error:
        raise hub_errors.LocalEntryNotFoundError("the hub does not answer") from error


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
