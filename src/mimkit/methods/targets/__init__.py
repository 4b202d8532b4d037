"""Targets: what a method predicts for the patches or squares of a picture."""


def targets() -> dict[str, type]:
    """Our targets by the name that the command line takes."""
    from mimkit.methods.targets.color import ColorBins, ColorClusters, RawPixels
    from mimkit.methods.targets.hog import HOG
    from mimkit.methods.targets.pixels import Pixels
    from mimkit.methods.targets.tokens import TokenIds

    return {
        "pixels": Pixels,
        "raw-pixels": RawPixels,
        "color-bins": ColorBins,
        "color-clusters": ColorClusters,
        "token-ids": TokenIds,
        "hog": HOG,
    }
