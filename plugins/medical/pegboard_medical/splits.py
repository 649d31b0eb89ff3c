"""Which cases train, which choose the checkpoint and which measure: whole patients, all classes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from pegboard.errors import SettingsError
from pegboard.records import Split
from pegboard.splits import SPLITS
from pegboard_medical.cases import Case
from pegboard_medical.settings import VolumeData


def assign(cases: Sequence[Case], data: VolumeData) -> dict[Split, list[Case]]:
    """Say which split each case belongs to; cases of one patient stay together.

    A split that the user's table gives is kept. The rest is divided by patient, labels in the same
    proportion: by `data.folds` and `data.fold`, or by `data.test_share`; `data.validation_share` is
    taken of what does not test.

    Returns:
        Lists that share no case, each in the order of `cases`.

    Raises:
        SettingsError: There is no such fold.
    """
    if data.folds and data.fold >= data.folds:
        raise SettingsError(
            f"there is no fold {data.fold} of {data.folds}",
            where="data.fold",
            remedy=f"take 0 to {data.folds - 1}",
        )
    patients = _patients(cases)
    places: dict[str, Split] = {name: given for name, (given, _) in patients.items() if given}
    free = _shuffled({name: label for name, (given, label) in patients.items() if not given}, data)
    has_test = "test" in places.values()
    tested = set() if has_test else _test_part(free, data)
    rest = [name for name in free if name not in tested]
    has_validation = "validation" in places.values()
    validated = set() if has_validation else _spaced(rest, data.validation_share)
    for name in free:
        places[name] = "test" if name in tested else "validation" if name in validated else "train"
    return {split: [case for case in cases if places[_name(case)] == split] for split in SPLITS}


def _name(case: Case) -> str:
    return case.patient or case.key


def _patients(cases: Sequence[Case]) -> dict[str, tuple[Split | None, str]]:
    """Return of each patient, in the order of appearance, the given split and the labels."""
    members: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        members[_name(case)].append(case)
    return {
        name: (
            # Of several the one that must not have been trained on.
            max((case.split for case in some if case.split), key=SPLITS.index, default=None),
            ",".join(sorted({case.label for case in some})),
        )
        for name, some in members.items()
    }


def _shuffled(patients: Mapping[str, str], data: VolumeData) -> list[str]:
    """Return patients in random order, those of one label beside one another."""
    names = list(patients)
    order = np.random.default_rng(data.split_seed).permutation(len(names))
    return sorted((names[i] for i in order), key=lambda name: patients[name])


def _test_part(names: Sequence[str], data: VolumeData) -> set[str]:
    if data.folds:
        return set(names[data.fold :: data.folds])
    return _spaced(names, data.test_share)


def _spaced(names: Sequence[str], share: float) -> set[str]:
    """Take a share of the names, evenly spaced, so that each label gives its own."""
    if not names or not share:
        return set()
    count = max(1, round(len(names) * share))
    places = np.linspace(0, len(names), count, endpoint=False).astype(int)
    return {names[place] for place in places}
