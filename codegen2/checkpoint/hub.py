"""resolve: a directory or a hub name to a local directory with config, weights and tokenizer only.

The files live in huggingface_hub's own cache, so that other programs share them. Offline (HF_HUB_OFFLINE or
CODEGEN2_OFFLINE set), only that cache is asked.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..box import box_dir
from .formats.tensors import damaged
from .reader import WEIGHT_FILES, shard_names
from .room import check_disk, human

SIZES = ("1B", "3_7B", "7B", "16B")
SMALL_FILES = ("config.json", "tokenizer.json")
_RELEASED = re.compile(r"(?:Salesforce/)?codegen2-(\w+?)(_P)?", re.IGNORECASE)


def hub_names(name: str) -> list[str]:
    """Return the hub names to try for what a user wrote, first the likeliest.

    The releases were renamed from codegen2-1B to codegen2-1B_P. A short name means today's name first: the
    old one lives on as a redirect at best, and in mirrors and caches. A full name is tried first.

    >>> hub_names("3.7B")
    ['Salesforce/codegen2-3_7B_P', 'Salesforce/codegen2-3_7B']
    >>> hub_names("Salesforce/codegen2-1B")
    ['Salesforce/codegen2-1B', 'Salesforce/codegen2-1B_P']
    >>> hub_names("someone/her-model")
    ['someone/her-model']
    """
    sizes = {s.lower(): s for s in SIZES}
    plain = name.replace(".", "_")
    if size := sizes.get(plain.lower()):
        return [f"Salesforce/codegen2-{size}_P", f"Salesforce/codegen2-{size}"]
    match = _RELEASED.fullmatch(plain)
    if match and (size := sizes.get(match[1].lower())):
        twins = [f"Salesforce/codegen2-{size}", f"Salesforce/codegen2-{size}_P"]
        written_as_new = bool(match[2]) or "/" not in name
        return twins[::-1] if written_as_new else twins
    return [name]


def hub_name(directory: Path) -> str | None:
    """Return the name of the model whose snapshot in the hub's cache a directory is, None where it is none.

    >>> hub_name(Path("/x/hub/models--Salesforce--codegen2-1B_P/snapshots/0123abcd"))
    'Salesforce/codegen2-1B_P'
    """
    snapshots, folder = directory.parent, directory.parent.parent.name
    if snapshots.name != "snapshots" or not folder.startswith("models--"):
        return None
    return folder.removeprefix("models--").replace("--", "/")


def offline() -> bool:
    """Return whether the user has asked to stay offline, now (huggingface_hub itself looks at import only)."""
    return any(
        os.environ.get(name, "").strip().lower() in ("1", "true", "yes", "on")
        for name in ("CODEGEN2_OFFLINE", "HF_HUB_OFFLINE")
    )


def resolve(name: str | Path | None, revision: str | None = None) -> Path:
    """Return the local directory of a model, downloading only the files needed.

    name: a directory, which wins; a size (1B, 3.7B, 7B, 16B); a hub name, old or renamed; or None, the model in the
    box. revision: a branch, tag or commit. HF_ENDPOINT names another hub. Raises ValueError, a sentence with a remedy.
    """
    path = box_dir() if name is None else Path(name).expanduser()
    if name != "" and path.is_dir():
        if revision is not None:
            what = "the model in the box" if name is None else f"{name}: is a local directory, which"
            raise ValueError(f"{what} has no revision {revision!r}; leave the revision out")
        return path
    text = str(name)
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", text) or text.startswith("."):
        raise ValueError(f"{text}: no such directory, and no hub name (owner/model); check the path")
    names = hub_names(text)
    if "/" not in names[0]:  # the hub's names have an owner
        raise ValueError(
            f"{text}: no such directory, and no size of CodeGen2; those are 1B, 3.7B, 7B and 16B"
        )
    if not offline():
        return _download_first(text, names, revision)
    found, lacking = _look_up(names, revision)
    if found is None:
        at = f" at revision {revision}" if revision else ""
        raise ValueError(
            f"{text}{at}: {lacking or 'it is'} not in the local cache, and this is offline; unset"
            " CODEGEN2_OFFLINE and HF_HUB_OFFLINE once to download it, or give a directory"
        )
    return found


def local_directory(name: str) -> Path | None:
    """Return the directory in the local cache where a model lies complete, None if it does not."""
    return _look_up(hub_names(name), None)[0]


def _look_up(names: list[str], revision: str | None) -> tuple[Path | None, str]:
    """Return the first complete directory in the cache, or None and what the nearest one lacks, maybe nothing."""
    from huggingface_hub import try_to_load_from_cache

    lacking = ""
    for name in names:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
        if not isinstance(config, str):
            continue
        folder = Path(config).parent
        weights = next((folder / file for file in WEIGHT_FILES if (folder / file).is_file()), None)
        if weights is None:
            lacking = f"its weights ({' or '.join(WEIGHT_FILES)}) are"
        elif absent := [shard for shard in _shards(weights) if not (folder / shard).is_file()]:
            lacking = f"{', '.join(absent)} of {name} are"
        else:
            return folder, ""
    return None, lacking


def downloaded() -> list[tuple[str, Path, int]]:
    """List the released models in the local cache: hub name, folder, bytes on disk.

    Only the releases: the cache belongs to other programs too, and what we list a user may remove.
    """
    from huggingface_hub import constants

    found = []
    # Not scan_cache_dir, which leaves out downloads that broke off.
    for name in (name for size in SIZES for name in hub_names(size)):
        folder = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
        if folder.is_dir():
            # Snapshots link to blobs: each real file counts once.
            real = {f.resolve() for f in folder.rglob("*") if f.is_file()}
            found.append((name, folder, sum(f.stat().st_size for f in real)))
    return found


def _shards(weights: Path) -> list[str]:
    return sorted(set(shard_names(weights).values())) if weights.name.endswith(".json") else []


def _download_first(text: str, names: list[str], revision: str | None) -> Path:
    """Download the first of these names that the hub knows; all that huggingface_hub raises becomes a ValueError."""
    from huggingface_hub import errors

    # Read now: huggingface_hub itself reads HF_ENDPOINT when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    for name in names:
        try:
            return _download(name, revision, endpoint)
        except errors.GatedRepoError as e:
            raise damaged(
                name, "the hub asks you to accept its terms", "do so on its page, then log in"
            ) from e
        except errors.RepositoryNotFoundError:
            continue
        except errors.RevisionNotFoundError as e:
            raise damaged(name, f"has no revision {revision!r}", "leave it out for the newest") from e
        except errors.HFValidationError as e:
            raise damaged(text, f"no such directory, and no hub name ({e})", "check the spelling") from e
        except ValueError:
            raise
        except Exception as e:
            # The HTTP library differs between versions of huggingface_hub, and so do its exceptions.
            what = f"{type(e).__name__}: {e}".splitlines()[0][:200]
            raise ValueError(
                f"{name}: {endpoint} could not be asked ({what}); check the network, set"
                " CODEGEN2_OFFLINE=1 to use what was downloaded before, or give a directory"
            ) from e
    raise ValueError(
        f"{text}: {endpoint} knows no {' or '.join(names)}; check the spelling, or give a directory"
    )


def _download(name: str, revision: str | None, endpoint: str) -> Path:
    from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache

    info = HfApi(endpoint=endpoint).model_info(name, revision=revision, files_metadata=True)
    sizes = {s.rfilename: s.size or 0 for s in info.siblings or []}
    weights = next((f for f in WEIGHT_FILES if f in sizes), None)
    if weights is None or "config.json" not in sizes:
        lacking = "config.json" if weights else " or ".join(WEIGHT_FILES)
        raise ValueError(f"{name}: has no {lacking} on the hub; choose another model")

    def get(file: str) -> Path:
        return Path(hf_hub_download(name, file, revision=revision, endpoint=endpoint))

    large = _shards(get(weights)) if weights.endswith(".json") else [weights]
    if absent := [f for f in large if f not in sizes]:
        lacking = f"the hub lacks {', '.join(absent)}, which {weights} names"
        raise damaged(name, lacking, "choose another revision")
    here = {f for f in large if isinstance(try_to_load_from_cache(name, f, revision=revision), str)}
    what = f"downloading {name} ({human(sum(sizes[f] for f in large))})"
    remedy = "take a smaller model (1B is 4.1 GB), or point HF_HOME to another disk"
    check_disk(Path(constants.HF_HUB_CACHE), sum(sizes[f] for f in large if f not in here), what, remedy)
    folders = {get(file).parent for file in (weights, *SMALL_FILES, *large) if file in sizes}
    if len(folders) != 1:
        raise ValueError(f"{name}: was changed on the hub during the download; run the command again")
    return folders.pop()
