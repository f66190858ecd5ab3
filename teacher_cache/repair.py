"""Makes the broken files of a cache again, and only those."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import InputError
from pipeline.files import replacing, sha256_of_file
from teacher_cache.finish import finish
from teacher_cache.format import MANIFEST, PLAN, read_manifest
from teacher_cache.integrity import SET_ASIDE, Examination
from teacher_cache.plan import PLAN_FIELDS, read_plan
from teacher_cache.seal import write_sealed
from teacher_cache.settings import COMMAND, from_settings

if TYPE_CHECKING:
    from teacher_cache.build_config import BuildConfig

# Where and by how many shards are made is the repairer's choice, not the first builder's.
OF_THE_MACHINE = ("mode", "share", "workers")


def repair(
    folder: Path,
    found: Examination,
    dataset: Path | None,
    device: str | None,
    say: Callable[[str], None],
) -> None:
    """Makes what is broken again; what was broken goes when all is well, and comes back when not.

    Args:
        folder: the cache.
        found: what is wrong with it.
        dataset: where the dataset is now; None for where it was.
        device: where models run; None for where they ran.
        say: told what was done.

    Raises:
        InputError: nothing tells how the cache was made, what it was made from is not there or has
            changed, or an image can no longer be read.
    """
    for name in found.broken("remove"):
        path = folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        say(f"{name}: removed")
    lost, asked = found.broken("write"), found.broken("ask")
    if not lost and not asked:
        return
    if PLAN in lost and MANIFEST in lost:
        raise InputError(
            f"{folder}: {PLAN} and {MANIFEST} are both damaged, so nothing tells how the cache was"
            " made; build it anew"
        )
    if PLAN in lost:
        _write_plan(folder)
        say(f"{PLAN}: written again from {MANIFEST}")
    images = {} if MANIFEST in lost else _images(folder)
    with _set_aside(folder, [*asked, MANIFEST], keep=PLAN):
        if asked:
            remake(folder, dataset, device, say)
        completion = finish(folder)
        if completion.missing:
            raise InputError(f"{folder}: expected all shards, found no {completion.missing[0]}")
        _refuse_losses(folder, images)
    for name in asked:
        say(f"{name}: made again{_compared(folder / name, found.checksums.get(name))}")
    if MANIFEST in lost:
        say(f"{MANIFEST}: written again")


def _compared(path: Path, checksum: str | None) -> str:
    if checksum is None:
        return ""
    if sha256_of_file(path) == checksum:
        return ", the same bytes as before"
    return ", other bytes than before (another kind of device, other threads or versions)"


def remake(
    folder: Path, dataset: Path | None, device: str | None, say: Callable[[str], None]
) -> None:
    """Runs the command that made a cache once more; it makes what is not there.

    Raises:
        InputError: as that command does.
    """
    from teacher_cache.build import build
    from teacher_cache.build_config import BuildConfig
    from teacher_cache.rescore import RescoreConfig, rescore

    file = folder / PLAN
    held = read_plan(folder).get("settings")
    settings = held if isinstance(held, dict) else {}
    own = {name: value for name, value in settings.items() if name not in OF_THE_MACHINE}
    if settings.get(COMMAND) == "rescore":
        rescoring = from_settings(own, RescoreConfig, file)
        rescore(replace(rescoring, out=folder, device=device or rescoring.device), say)
        return
    building = from_settings(own, BuildConfig, file)
    building = replace(building, out=folder, device=device or building.device)
    if dataset is not None:
        building = _moved(building, dataset)
    elif not building.dataset.is_dir():
        raise InputError(f"{building.dataset}: no such dataset folder; --data says where it is now")
    build(building, say)


def _moved(config: BuildConfig, dataset: Path) -> BuildConfig:
    """The configuration for a dataset that lies elsewhere now, and its own models with it."""

    def moved(value: str | None) -> str | None:
        if value is None or not Path(value).is_relative_to(config.dataset):
            return value
        return str(dataset / Path(value).relative_to(config.dataset))

    return replace(
        config,
        dataset=dataset,
        detector_weights=moved(config.detector_weights),
        clip_model=moved(config.clip_model),
        clip_weights=moved(config.clip_weights),
    )


def _write_plan(folder: Path) -> None:
    manifest = read_manifest(folder)
    num_images = sum(len(entry["images"]) for entry in manifest["shards"])
    held = {**manifest, "images": num_images + len(manifest["failed"])}
    write_sealed(folder / PLAN, {name: held[name] for name in PLAN_FIELDS if name in held})


def _images(folder: Path) -> dict[str, list[str]]:
    return {entry["name"]: entry["images"] for entry in read_manifest(folder)["shards"]}


def _refuse_losses(folder: Path, images: dict[str, list[str]]) -> None:
    """A repair must not trade answers that were there for images that have gone since.

    Raises:
        InputError: an image that had answers has none.
    """
    manifest = read_manifest(folder)
    for entry in manifest["shards"]:
        for image in set(images.get(entry["name"], ())) - set(entry["images"]):
            reason = manifest["failed"].get(image, "the dataset does not name it")
            raise InputError(f"{folder}: {image}: cannot be asked about again: {reason}")


def undo_stopped_repair(folder: Path) -> None:
    """Puts back what a repair that was killed had set aside and not made again."""
    aside = folder / SET_ASIDE
    for path in sorted(aside.rglob("*")):
        place = folder / path.relative_to(aside)
        if path.is_file() and not place.exists():
            os.replace(path, place)
    shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _set_aside(folder: Path, names: list[str], keep: str) -> Iterator[None]:
    """Moves files out of the way; they come back, in place of what replaced them, on failure.

    Args:
        folder: the cache.
        names: of the files.
        keep: name of a file that stays, and becomes again what it is on failure.
    """
    aside = folder / SET_ASIDE
    shutil.rmtree(aside, ignore_errors=True)
    moved = [name for name in names if (folder / name).exists()]
    for name in moved:
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder / name, aside / name)
    kept = (folder / keep).read_bytes()
    try:
        yield
    except BaseException:
        for name in names:
            (folder / name).unlink(missing_ok=True)
        for name in moved:
            os.replace(aside / name, folder / name)
        with replacing(folder / keep) as temporary:
            temporary.write_bytes(kept)
        shutil.rmtree(aside, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)
