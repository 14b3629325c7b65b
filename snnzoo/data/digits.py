"""scikit-learn's handwritten digits as a folder of images: real data that needs no download."""

from pathlib import Path

from PIL import Image

from snnzoo.errors import InputError


def write_digits(folder: str | Path) -> Path:
    """Write the 1,797 digits (8x8, grey) as ``train/<digit>/*.png`` and ``validation/<digit>/*.png``.

    Every fifth image is for validation: 1,438 and 359. An existing copy is left as it is.

    Args:
        folder: where to.

    Returns:
        The folder.

    Raises:
        InputError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise InputError("the digits come with scikit-learn: pip install 'snnzoo[test]'") from error
    folder = Path(folder)
    digits = load_digits()
    for index, (pixels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        path = folder / ("validation" if index % 5 == 4 else "train") / str(label) / f"{index:04d}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((pixels * (255 / 16)).round().astype("uint8")).save(path)
    return folder
