"""`vae train`: the tutorial's recipe, in a run folder that can be resumed exactly."""

import dataclasses
import os
from collections.abc import Callable, Set

from vaecli import data
from vaecli.errors import UsageError, VaeError
from vaecli.lock import lock_folder
from vaecli.run import ANEW, CONFIG, METRICS, STATE, Settings, remove, remove_leftovers, run_files, write_config
from vaecli.runtime import be_exact, choose_device, choose_precision, memory_errors
from vaecli.services import Observer
from vaecli.services.epochs import Run
from vaecli.services.inputs import note_background
from vaecli.services.outputs import refuse_inside, refuse_stray_link
from vaecli.services.resume import Trained, already_finished, refuse_moved_data, settings_of_run

# All that a run can hold that was killed before its first epoch was committed.
FIRST_COMMIT = (CONFIG, METRICS, "check1.safetensors")


def train(
    settings: Settings,
    folder: str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    typed: Set[str] = frozenset(),
    observer: Observer | None = None,
) -> Trained | None:
    """Train a ConvVAE into the run folder, or go on with the run in it.

    With `resume` the settings are those of the run in `folder`, if there is one; of `settings` only
    the fields in `typed` count then. With `dry_run` one batch of each step is computed, nothing is
    written, and the answer is None.

    Raises UsageError for `resume` with `overwrite` or if a typed setting is not the run's, VaeError if
    a run is in the way, and DivergedError if a loss is not finite; the last finished epoch's weights
    are kept then, as they are when the training is interrupted.
    """
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other. Choose one.")
    observer = observer or Observer()
    if dry_run:
        return _train(settings, folder, resume, overwrite, typed, observer)
    with lock_folder(folder, observer.note) as check_folder:
        remove_leftovers(folder)
        return _train(settings, folder, resume, overwrite, typed, observer, check_folder)


def _train(
    settings: Settings,
    folder: str,
    resume: bool,
    overwrite: bool,
    typed: Set[str],
    observer: Observer,
    check_folder: Callable[[], None] | None = None,
) -> Trained | None:
    """As `train`, in a locked folder; without its check it is a dry run."""
    present = run_files(folder)
    for path in () if overwrite else present:  # a link that is in the way is removed, not followed
        refuse_stray_link(path)
    if resume and present:
        settings = settings_of_run(folder, settings, typed)
    elif present and not overwrite:
        raise VaeError(f"{folder} holds a run. Use --resume to go on, --overwrite to replace it, or another -o.")
    refuse_inside(folder, "run folder", settings.dataset)
    device = choose_device(settings.device)
    be_exact(device)
    settings = dataclasses.replace(settings, precision=choose_precision(settings.precision, device))

    continuing = resume and os.path.join(folder, STATE) in present
    if resume and not continuing and any(os.path.basename(path) not in FIRST_COMMIT for path in present):
        raise VaeError(f"{folder} has lost its {STATE}, so it cannot go on. Restore it, or {ANEW}.")
    if continuing and (finished := already_finished(folder, settings, repair=check_folder is not None)):
        more = "" if settings.lr_schedule == "cosine" else "; a higher --epochs goes on"
        observer.note(f"The run is finished already{more}.")
        return finished if check_folder else None
    if resume and present:
        refuse_moved_data(folder, settings)
    with memory_errors(device):
        train_split, test_split = (
            data.load(settings.dataset, split, settings.data_dir, observer.note) for split in ("train", "test")
        )
        note_background(settings.dataset, (train_split, test_split), observer)
        run = Run(folder, settings, device, train_split, test_split, observer, check_folder)
        if continuing:
            run.restore()
        if check_folder is None:
            run.try_one_batch()
            return None
        if overwrite:
            remove(present)
        write_config(folder, settings)
        return run.train()
