"""Words about metrics: a name enters; how to read it and what the literature expects leave."""

from typing import NamedTuple


class Reading(NamedTuple):
    """A sentence or two on each."""

    read: str
    expected: str


_PARK = "Park et al. 2023, arXiv:2305.00729"
_XIE = "Xie et al. 2023, arXiv:2205.13543"
_SHIN = "Shin et al. 2024, arXiv:2507.19773"

READINGS = {
    "attention_distance": Reading(
        "Mean distance, in pixels, between a patch and the patches it attends to. Dots are heads: a wide spread means "
        "that near and far are looked at in the same layer.",
        f"Masked models: near and far heads in every layer. Supervised: near first, far late. Contrastive: far, most "
        f"of all in late layers ({_PARK}; {_XIE}).",
    ),
    "attention_entropy": Reading(
        "How evenly a head spreads its attention. Low is focused, high is broad; broad is not the same as far.",
        f"Masked models: focused and broad heads in all layers. Supervised and contrastive: broad in late layers "
        f"({_XIE}).",
    ),
    "relative_entropy": Reading(
        "The same entropy as a share of the largest possible, so that models with other numbers of patches compare.",
        "As for the entropy: mixed in masked models, close to 1 in late layers of the others.",
    ),
    "head_divergence": Reading(
        "How differently the heads of one layer look. At 0 all heads look alike and all but one are superfluous.",
        f"Masked models stay high to the last layer; supervised and contrastive ones fall to 0 in their last three "
        f"or so ({_XIE}).",
    ),
    "mutual_information": Reading(
        "How much what is looked at depends on which patch looks. At 0 all patches look at the same places "
        "(attention collapse). Random attention is above 0 too, so it says nothing about meaning.",
        f"Near 0 in late layers of contrastive models, clearly above in masked ones ({_PARK}).",
    ),
    "high_frequency": Reading(
        "How much fine detail across neighboring patches is left in the tokens, relative to their mean. Higher "
        "(nearer 0) is more texture, lower is more shape.",
        f"Masked models keep more high frequencies; contrastive ones lose them in deep layers ({_PARK}).",
    ),
    "feature_variance": Reading(
        "How far the tokens of one picture point apart: 0 if all are parallel.",
        f"Higher in masked models than in contrastive and supervised ones ({_SHIN}). Not monotone in training: random "
        "tokens already point apart.",
    ),
    "similarity_variance": Reading(
        "High where some patches of a picture belong together and others do not.",
        f"Higher in masked models than in contrastive and supervised ones ({_SHIN}).",
    ),
    "similarity_intra": Reading(
        "Mean cosine of patches on one side of the normalized cut; read it with the gap.",
        f"Above the one across the cut wherever patches cluster ({_SHIN}).",
    ),
    "similarity_inter": Reading(
        "Mean cosine of patches on different sides of the cut; read it with the gap.",
        f"Below the one within a side wherever patches cluster ({_SHIN}).",
    ),
    "similarity_gap": Reading(
        "How much more alike patches on one side of the cut are than patches across: how clearly patches cluster.",
        f"Grows in training, and early ({_SHIN}). It is large for random weights already: compare with the start.",
    ),
    "attention_gap": Reading(
        "How much more patches on one side of the cut attend to each other than across. Scales with 1 / patches.",
        f"Grows in training, more clearly than the gap of similarities ({_SHIN}).",
    ),
    "similarity_kl": Reading(
        "How far the similarities of patches are from those at the end of training: 0 at the end.",
        f"Falls fast in early epochs ({_SHIN}).",
    ),
    "attention_kl": Reading(
        "How far attention is from that at the end of training: 0 at the end.",
        f"Falls fast in early epochs ({_SHIN}).",
    ),
    "effective_rank": Reading(
        "How many directions the pooled features use, from 1 to their width.",
        "Falls towards 1 in collapse; within one family of models higher goes with better features "
        "(Garrido et al. 2023, arXiv:2210.02885). Only compare equal numbers of pictures.",
    ),
    "drop_change": Reading(
        "How much the pooled features would change if this were the last layer: 0 at the last.",
        f"Late layers of supervised models change little, those of masked ones more ({_XIE}).",
    ),
    "drop_knn": Reading(
        "kNN accuracy if this were the last layer: where the best features for classes lie. Half of the pictures "
        "vote on the other half, so it is below the accuracy of a whole set.",
        "Supervised and contrastive models: best at the end. Masked: often best before the last layer.",
    ),
    "swap_change": Reading(
        "How much the pooled features change when this layer and the next change places.",
        f"Masked models bear it better than supervised ones ({_XIE}, with fine-tuning; here without).",
    ),
    "swap_knn": Reading("kNN accuracy with this layer and the next swapped.", "As for the change of features."),
    "exploitation_masked": Reading(
        "Share of the decoder's tokens that comes from mask tokens rather than from visible patches, by decoder layer.",
        f"Rises when mask tokens start to hold something, which is when informed masks may begin ({_SHIN}).",
    ),
    "mask_token_variance": Reading(
        "How far the mask tokens of a picture point apart in the decoder: whether they know where they are.",
        f"Higher means more differentiated predictions ({_SHIN}).",
    ),
    "reconstruction_error": Reading(
        "Squared error on hidden patches, as a share of the target's variance: 1 is guessing the mean.",
        "Falls in training; a lower one does not mean better features.",
    ),
    "disagreement": Reading(
        "How different the predictions of one patch are under different masks.",
        "EMAE lowers it on purpose (Li et al. 2023, arXiv:2302.14431). A constant prediction agrees perfectly: read it "
        "beside the error.",
    ),
    "average_distance": Reading(
        "Mean distance of hidden pixels to the nearest visible one, of the run's own masks.",
        "SimMIM finds 10 to 20 px best for 192 px images (Xie et al. 2022, arXiv:2111.09886).",
    ),
}

CKA = Reading(
    "Similarity of what two layers tell about the same pictures: 1 the same up to rotation and scale, 0 unrelated.",
    f"Masked and contrastive models: high between all layers. Supervised: blocks, far layers differ ({_XIE}).",
)


def reading(metric: str) -> Reading:
    """Empty sentences for a metric that nobody has described."""
    return READINGS.get(metric, Reading("", ""))
