"""The metrics by name: nothing enters, for each its group, unit, short heading and what it says leaves."""

from typing import NamedTuple

GROUPS = {
    "attention": "distance, entropy, divergence and mutual information of every head",
    "cka": "linear CKA of all pairs of layers, within and between targets",
    "fourier": "log amplitude of high frequencies",
    "variance": "how far the tokens of a picture point apart",
    "clusters": "normalized cut of the patches, and how far its two sides are apart",
    "rank": "effective rank of pooled features",
    "drop": "what dropping the last blocks changes",
    "decoder": "of a run with a decoder: exploitation, mask tokens, reconstruction, masks",
    "swap": "what swapping adjacent blocks changes; as many forward passes as there are blocks",
}
USUAL = tuple(group for group in GROUPS if group != "swap")


class Metric(NamedTuple):
    """What stands behind a name in the rows of a result."""

    group: str
    unit: str
    heading: str  # of a column
    says: str


METRICS = {
    "attention_distance": Metric("attention", "px", "distance", "how far a head looks"),
    "attention_entropy": Metric("attention", "nats", "entropy", "how broad a head looks"),
    "relative_entropy": Metric("attention", "of ln N", "of ln N", "how broad a head looks: 1 is everywhere alike"),
    "head_divergence": Metric("attention", "nats", "head KL", "how far a head differs from the others of its layer"),
    "mutual_information": Metric("attention", "0..1", "NMI", "how much a head's choice depends on who looks"),
    "high_frequency": Metric("fourier", "ln", "high freq", "log amplitude of the highest frequency less that of 0"),
    "feature_variance": Metric("variance", "0..1", "var F", "how far the tokens of a picture point apart"),
    "similarity_variance": Metric("variance", "", "var S", "how unequally similar the tokens of a picture are"),
    "similarity_intra": Metric("clusters", "cosine", "intra", "mean cosine of patches on one side of the cut"),
    "similarity_inter": Metric("clusters", "cosine", "inter", "mean cosine of patches across the cut"),
    "similarity_gap": Metric("clusters", "cosine", "gap", "how much more alike patches of one side are"),
    "attention_gap": Metric("clusters", "", "att. gap", "how much more patches of one side look at each other"),
    "similarity_kl": Metric("clusters", "nats", "KL M", "how far relations of tokens are from those at the end"),
    "attention_kl": Metric("clusters", "nats", "KL A", "how far attention is from that at the end"),
    "effective_rank": Metric("rank", "", "rank", "how many directions pooled features use"),
    "drop_change": Metric("drop", "", "drop", "change of pooled features without the blocks behind this one"),
    "drop_knn": Metric("drop", "0..1", "drop kNN", "kNN accuracy without the blocks behind this one"),
    "swap_change": Metric("swap", "", "swap", "change of pooled features with this block and the next swapped"),
    "swap_knn": Metric("swap", "0..1", "swap kNN", "kNN accuracy with this block and the next swapped"),
    "exploitation_masked": Metric("decoder", "0..1", "from mask", "share of the decoder's tokens owed to mask tokens"),
    "mask_token_variance": Metric("decoder", "0..1", "var mask", "how far mask tokens of a picture point apart"),
    "reconstruction_error": Metric("decoder", "of variance", "error", "squared error on hidden patches"),
    "disagreement": Metric("decoder", "of variance", "disagreement", "difference of predictions between masks"),
    "average_distance": Metric("decoder", "px", "AvgDist", "distance of hidden pixels to visible ones"),
}
