from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from pegboard.batching import stack
from pegboard.errors import SettingsError
from pegboard_defect import data
from pegboard_defect.model import build
from pegboard_defect.settings import DefectModel, DefectSettings
from pegboard_defect.words import PENALTY, SCALES, SMALLEST, WordMachine, _best_in_cells


@pytest.fixture
def dataset(generated: DefectSettings) -> data.InspectionDataset:
    return data.load(generated, "train")


@pytest.fixture
def machine(generated: DefectSettings, dataset: data.InspectionDataset) -> WordMachine:
    machine = WordMachine(1, 12, len(generated.data.classes)).eval()
    machine.fit(dataset)
    return machine


def pictures_of(dataset: data.InspectionDataset) -> torch.Tensor:
    return torch.stack([torch.from_numpy(dataset[i].inputs["image"]) for i in range(len(dataset))])


def labels_of(dataset: data.InspectionDataset) -> np.ndarray:
    return np.array([np.argmax(dataset[i].targets["label"]) for i in range(len(dataset))])


def test_the_best_match_in_each_cell_counts_and_no_place_is_left_out() -> None:
    found = torch.zeros(1, 1, 6, 7)
    found[0, 0, 5, 6] = 3.0
    best = _best_in_cells(found, 4).reshape(4, 4)
    assert best[-1, -1] == 3.0
    assert (best > 0).sum() == 1


@pytest.mark.parametrize("scale", range(len(SCALES)))
def test_a_word_counts_as_far_as_it_is_nearer_than_the_mean_one(
    machine: WordMachine, dataset: data.InspectionDataset, scale: int
) -> None:
    dictionary, (patch, grid) = machine.dictionaries[scale], SCALES[scale]
    seen = machine.normalise(pictures_of(dataset)[:3])  # (3, D, 6, 6): a patch a cell
    patches = functional.unfold(seen, patch).transpose(1, 2)  # (3, G^2, E)
    white = (patches - dictionary.mean) @ dictionary.whiten
    distance = torch.cdist(white, dictionary.words)  # (3, G^2, W)
    expected = (distance.mean(dim=2, keepdim=True) - distance).clamp(min=0)
    found = dictionary.describe(seen).reshape(3, 12, grid**2).transpose(1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_the_machine_answers_as_scikit_learns_does(
    machine: WordMachine, dataset: data.InspectionDataset
) -> None:
    from sklearn.svm import SVC

    images, labels = pictures_of(dataset), labels_of(dataset)
    features = machine.features(images).double().numpy()
    peer = SVC(C=PENALTY, gamma=1 / len(SCALES)).fit(features, labels == 0)
    expected = torch.from_numpy(peer.decision_function(features)).float()
    torch.testing.assert_close(machine(images)[:, 0], expected, rtol=0, atol=2e-3)


def test_it_tells_the_pictures_it_was_taught_apart(
    machine: WordMachine, dataset: data.InspectionDataset
) -> None:
    logits, labels = machine(pictures_of(dataset)).numpy(), labels_of(dataset)
    assert (logits.argmax(axis=1) == labels).mean() > 0.8


def test_a_class_that_no_picture_has_is_never_the_answer(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    labels = labels_of(dataset)
    machine = WordMachine(1, 12, len(generated.data.classes) + 1).eval()
    machine.fit(dataset)
    logits = machine(pictures_of(dataset))
    assert len(generated.data.classes) not in set(labels)
    assert (logits[:, -1] == -1).all()


def test_words_count_in_the_answer_and_not_in_the_loss(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    table = generated.model.model_copy(update={"words": 12})
    model = build(generated.model_copy(update={"model": table}), dataset).eval()
    images, batch = pictures_of(dataset), stack([dataset[i] for i in range(len(dataset))])
    answers, losses = [], []
    for machine in (model.words, None):
        model.words = machine
        answers.append(model(images)["score"])
        losses.append(model.losses(batch)["loss"])
    assert (answers[0] - answers[1]).abs().max() > 0.05
    torch.testing.assert_close(losses[0], losses[1])


def test_what_was_remembered_is_in_the_weights(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    settings = generated.model_copy(update={"model": DefectModel(words=12)})
    trained = build(settings, dataset).eval()
    again = build(settings, None).eval()
    again.load_state_dict(trained.state_dict())
    images = pictures_of(dataset)[:4]
    torch.testing.assert_close(again(images)["score"], trained(images)["score"])


def test_pictures_that_are_too_small_are_an_error(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    small = generated.data.model_copy(update={"size": (SMALLEST - 1, 64)})
    settings = generated.model_copy(update={"data": small, "model": DefectModel(words=12)})
    with pytest.raises(SettingsError, match=r"47 pixels are too small for visual words.*48"):
        build(settings, dataset)


def test_tiles_are_refused_because_whole_pictures_are_taught(
    generated: DefectSettings, dataset: data.InspectionDataset
) -> None:
    tiled = generated.data.model_copy(update={"tile": 48})
    settings = generated.model_copy(update={"data": tiled, "model": DefectModel(words=12)})
    with pytest.raises(SettingsError, match=r"the model would see tiles.*data\.tile = 0"):
        build(settings, dataset)
