"""What a trained dense task says of a picture: the picture enters as it is, a Prediction in its own pixels leaves."""

import torch
from jaxtyping import Float, Int16, Shaped
from torch import Tensor
from torch.nn.functional import interpolate

from mimkit.core.annotation import Prediction
from mimkit.core.errors import UserError
from mimkit.data.annotations.annotated import PERSON_MARGIN
from mimkit.data.normalize import Normalize
from mimkit.data.resize import crop_beyond
from mimkit.data.values import Values
from mimkit.evaluate.trained import Trained
from mimkit.model.detection import paste

_WINDOWS = 8  # looked at together


@torch.inference_mode()
def predict(
    trained: Trained,
    picture: Shaped[Tensor, "C H W"],
    values: Values = Values(),
    boxes: Float[Tensor, "n 4"] | None = None,
) -> Prediction:
    """Classes, depths, objects or joints of one picture.

    Args:
        trained: see `open_trained`.
        picture: as `Pictures.read` gives it.
        values: what its numbers mean.
        boxes: of keypoints, the people of the picture; by default one who fills it.

    Raises:
        UserError: the picture has another number of channels, or what the task says is not finite.
    """
    if len(picture) != trained.channels:
        raise UserError(f"'{trained.name}' sees {trained.channels} channels, the picture has {len(picture)}")
    if trained.kind == "detect":
        return _detected(trained, picture, values)
    if trained.kind == "keypoints":
        return _jointed(trained, picture, values, boxes)
    scores = slide(trained, picture, values)
    _refuse_not_finite(scores, trained)
    size = (picture.shape[1], picture.shape[2])
    if trained.kind == "segment":
        return Prediction(size=size, segments=_greatest(scores, size).cpu())
    return Prediction(size=size, depth=_enlarged(scores[0], size).cpu())


def _enlarged(scores: Float[Tensor, "h w"], size: tuple[int, int]) -> Float[Tensor, "H W"]:
    return interpolate(scores[None, None], size, mode="bilinear", align_corners=False)[0, 0]


def _greatest(scores: Float[Tensor, "K h w"], size: tuple[int, int]) -> Int16[Tensor, "H W"]:
    """The class of the greatest score of each pixel; class after class, since all of a photograph are gigabytes."""
    best = _enlarged(scores[0], size)
    classes = torch.zeros(size, dtype=torch.int16, device=scores.device)
    for number in range(1, len(scores)):
        enlarged = _enlarged(scores[number], size)
        classes[enlarged > best] = number
        best = torch.maximum(best, enlarged)
    return classes


def slide(trained: Trained, picture: Shaped[Tensor, "C H W"], values: Values) -> Float[Tensor, "K h w"]:
    """Scores of the picture at the size at which it just covers a window, as means over the windows that see a pixel.

    Windows have the size of the task's images, and lie `test_stride` of it apart; the last ends with the picture. With
    `test_flip`, the means of the picture and its mirror (open-mmlab/mmsegmentation: slide_inference).
    """
    window, settings = trained.size, trained.settings
    height, width = picture.shape[1:]
    zoom = max(window[0] / height, window[1] / width)
    scaled = (max(window[0], round(height * zoom)), max(window[1], round(width * zoom)))
    image = _image(trained, picture, torch.tensor([0, 0, height, width]), scaled, values)
    places = [
        (y, x)
        for y in starts(scaled[0], window[0], settings.test_stride)
        for x in starts(scaled[1], window[1], settings.test_stride)
    ]
    total = torch.zeros(0)
    counts = torch.zeros(1, *scaled, device=trained.device)
    for first in range(0, len(places), _WINDOWS):
        group = places[first : first + _WINDOWS]
        windows = torch.stack([image[:, y : y + window[0], x : x + window[1]] for y, x in group])
        scores = _scores(trained, windows)
        if not len(total):
            total = scores.new_zeros(scores.shape[1], *scaled)
        for (y, x), maps in zip(group, scores, strict=True):
            total[:, y : y + window[0], x : x + window[1]] += maps
            counts[:, y : y + window[0], x : x + window[1]] += 1
    return total / counts


def starts(length: int, window: int, stride: float) -> list[int]:
    """Where windows begin along an axis: each by `stride` of a window further, the last where it ends with the axis."""
    step = max(1, round(window * stride))
    return [*range(0, length - window, step), length - window]


def _scores(trained: Trained, windows: Float[Tensor, "b C h w"]) -> Float[Tensor, "b K h w"]:
    scores = trained.task.predict(windows).float()
    if trained.settings.test_flip:
        scores = (scores + trained.task.predict(windows.flip(3)).float().flip(-1)) / 2
    return scores.unsqueeze(1) if scores.ndim == 3 else scores


def _image(
    trained: Trained, picture: Tensor, box: Tensor, size: tuple[int, int], values: Values
) -> Float[Tensor, "C h w"]:
    """A box of a picture as the task sees it, on its device."""
    view = crop_beyond(picture, box, False, size, "bicubic", values)
    return Normalize(trained.mean, trained.std, trained.device)(view.unsqueeze(0))[0].nan_to_num_(0.0)


def _detected(trained: Trained, picture: Tensor, values: Values) -> Prediction:
    """Objects: the picture is made to fit into the task's image, at its upper left, and gray around."""
    height, width = picture.shape[1:]
    zoom = min(trained.size[0] / height, trained.size[1] / width)
    fitted = (
        max(1, min(trained.size[0], round(height * zoom))),
        max(1, min(trained.size[1], round(width * zoom))),
    )
    # The box that the whole image shows.
    box = torch.tensor([0, 0, round(trained.size[0] / zoom), round(trained.size[1] / zoom)])
    image = _image(trained, picture, box, trained.size, values)
    (objects,) = trained.task.detect(image.unsqueeze(0), [fitted])
    _refuse_not_finite(objects.scores, trained)
    scale = torch.tensor([width / fitted[1], height / fitted[0]], device=trained.device).repeat(2)
    boxes = objects.boxes * scale
    masks = None if objects.masks is None else paste(objects.masks, boxes, (height, width)).cpu()
    return Prediction(
        size=(height, width),
        boxes=boxes.cpu(),
        labels=objects.labels.cpu(),
        scores=objects.scores.float().cpu(),
        masks=masks,
    )


def _jointed(trained: Trained, picture: Tensor, values: Values, boxes: Tensor | None) -> Prediction:
    """Joints of each person, seen in a box that is a fourth larger and has the aspect of the task's image."""
    height, width = picture.shape[1:]
    boxes = torch.tensor([[0.0, 0.0, width, height]]) if boxes is None else boxes
    skeleton = trained.joints if trained.settings.test_flip else None
    mirrored = None if skeleton is None else skeleton.mirrored
    keypoints = []
    for person in boxes:
        x0, y0, x1, y1 = person.tolist()
        aspect = trained.size[0] / trained.size[1]
        tall = PERSON_MARGIN * max(y1 - y0, (x1 - x0) * aspect)
        wide = tall / aspect
        start = ((y0 + y1 - tall) / 2, (x0 + x1 - wide) / 2)
        box = torch.tensor([round(start[0]), round(start[1]), max(1, round(tall)), max(1, round(wide))])
        image = _image(trained, picture, box, trained.size, values).unsqueeze(0)
        joints = trained.task.predict(image, mirrored)[0].cpu()
        scale = box[2:].flip(0) / torch.tensor([trained.size[1], trained.size[0]])
        joints[:, :2] = joints[:, :2] * scale + box[:2].flip(0)
        keypoints.append(joints)
    points = torch.stack(keypoints) if keypoints else torch.zeros(0, 0, 3)
    _refuse_not_finite(points, trained)
    return Prediction(
        size=(height, width),
        boxes=boxes,
        labels=torch.zeros(len(boxes), dtype=torch.int64),
        keypoints=points,
        scores=points[..., 2].mean(1) if len(points) else torch.zeros(0),
    )


def _refuse_not_finite(scores: Tensor | None, trained: Trained) -> None:
    if scores is not None and not scores.isfinite().all():
        raise UserError(f"what '{trained.name}' says is not finite: its weights are damaged or overflow")
